"""Models are built whose names a shell would read: of folders, files, settings, the checkout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hostile_names import NAME, HostileProject, checkout, pwned
from helpers.hub_cases import READER, environment, files_with
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama

INDEX = "model.safetensors.index.json"
LOCAL, REMOTE = f"{NAME}.safetensors", "x$(touch PWNED).safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    rename(llama(tmp_path / "hub" / "some" / "one", 2, layers=1, files=2), REMOTE)
    gated = {"gated": True, "readers": [READER]}
    (tmp_path / "hub" / "some" / "one" / ".hub.json").write_text(json.dumps(gated))
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


def rename(folder: Any, name: Any) -> None:
    """Give a model's first weight file another name, in its index too."""
    first = "model-00001-of-00002.safetensors"
    (folder / first).rename(folder / name)
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(json.dumps(first), json.dumps(name)))


class TestHostileNames:
    def test_nothing_of_them_runs(self, hub: LoopbackHub, tmp_path: Path) -> None:
        project = HostileProject(tmp_path / NAME / "work")
        project.snakefile = checkout(tmp_path / "home") / "Snakefile"
        models = project.folder / "models"
        rename(llama(models / NAME, 1, layers=1, files=2), LOCAL)
        recipe = {"name": "merged", "merge_method": "linear", "dtype": "float16"}
        recipe["models"] = [
            {"model": name, "parameters": {"weight": 0.5}} for name in ("our/own", "some/one")
        ]
        project.recipe.write_text(json.dumps(recipe))
        results, told = f"r {NAME}", f"{NAME} {{wildcards.name}}"
        project.configure(
            sources={"our/own": f"models/{NAME}"}, results=results, card={"description": told}
        )
        env = environment(hub, tmp_path / "cache", READER)
        refused = project.run("-n", "models", "--executor", "slurm", "--jobs", "1", env=env)
        assert "is not safe to pass to jobs on a cluster" in refused.stdout
        assert "Traceback" not in refused.stdout
        done = project.run("models", env=env)
        assert done.returncode == 0, done.stdout
        assert pwned(tmp_path, project.folder) == []

        made = project.folder / results / "merged"
        assert json.loads((made / "verify.json").read_text())["passed"]
        assert told in (made / "model" / "README.md").read_text()
        [folder] = (project.folder / "resources" / "models").iterdir()
        assert (folder / REMOTE).is_file()
        log = project.folder / "logs" / "fetch_file" / folder.name / f"{REMOTE}.log"
        assert log.is_file()
        assert READER not in done.stdout
        assert files_with(READER, project.folder, tmp_path / "cache") == []
        assert (
            "Nothing to be done"
            in project.run("-n", "models", env=environment(hub, tmp_path / "cache")).stdout
        )
