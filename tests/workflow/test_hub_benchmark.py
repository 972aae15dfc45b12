"""Models of the Hub, merged with a configuration of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_cases import environment
from loopback_hub import LoopbackHub
from workflow_helpers import REPOSITORY, Project

pytestmark = pytest.mark.slow

RECIPE = """\
name: mean
merge_method: linear
models:
  - {model: lab/llama2-tiny, parameters: {weight: 1}}
  - {model: lab/midnight-tiny, parameters: {weight: 1}}
dtype: float16
"""


@pytest.fixture
def hub(tmp_path: Path):
    for name in ("llama2-tiny", "midnight-tiny"):
        shutil.copytree(REPOSITORY / "resources" / "demo" / name, tmp_path / "hub" / "lab" / name)
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


def project(folder: Path) -> Project:
    """Return a project beside a copy of the demo's configuration, as in a clone of the workflow."""
    made = Project(folder)
    (folder / "config").mkdir(parents=True)
    shutil.copy(REPOSITORY / "config" / "config.yaml", folder / "config" / "config.yaml")
    made.recipe.write_text(RECIPE)
    made.configure(sources={})
    return made


class TestOwnConfiguration:
    def test_no_task_and_no_whole_source_unless_asked_for(self, hub, tmp_path) -> None:
        own = project(tmp_path / "own")
        jobs = own.run("-n", env=environment(hub, tmp_path / "home")).stdout
        assert "merge_shard" in jobs
        assert "run_task" not in jobs and "demo_B" not in jobs
