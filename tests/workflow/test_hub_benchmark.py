"""Models of the Hub, merged and measured with a configuration of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_cases import environment
from helpers.loopback_hub import LoopbackHub
from helpers.workflow import REPOSITORY, Project, scores

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
def hub(tmp_path: Path) -> Iterator[Any]:
    for name in ("llama2-tiny", "midnight-tiny"):
        shutil.copytree(REPOSITORY / "resources" / "demo" / name, tmp_path / "hub" / "lab" / name)
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


def project(folder: Path, **config: object) -> Project:
    """Return a project beside a copy of the demo's configuration, as in a clone of the workflow."""
    made = Project(folder)
    (folder / "config").mkdir(parents=True)
    shutil.copy(REPOSITORY / "config" / "config.yaml", folder / "config" / "config.yaml")
    made.recipe.write_text(RECIPE)
    made.configure(sources={}, **config)
    return made


class TestOwnConfiguration:
    def test_no_task_and_no_whole_source_unless_asked_for(self, hub: Any, tmp_path: Path) -> None:
        own = project(tmp_path / "own")
        jobs = own.run("-n", env=environment(hub, tmp_path / "home")).stdout
        assert "merge_shard" in jobs
        assert "run_task" not in jobs and "demo_B" not in jobs

    def test_a_source_of_the_hub_is_measured(self, hub: Any, tmp_path: Path) -> None:
        tasks = REPOSITORY / "config" / "tasks" / "demo"
        benchmark = {
            "models": ["merged", "lab/midnight-tiny"],
            "tasks": ["demo_B"],
            "include_path": str(tasks),
            "batch_size": 64,
        }
        own = project(tmp_path / "own", benchmark=benchmark, keep_sources=False)
        own.build("benchmarks", env=environment(hub, tmp_path / "home"))
        found = scores(own, "mean")
        assert set(found) == {("mean", "demo_B"), ("midnight-tiny", "demo_B")}
        assert found["midnight-tiny", "demo_B"] == 1.0
        # What was fetched goes when it has been merged and measured.
        assert list((own.folder / "resources").rglob("*.safetensors")) == []
