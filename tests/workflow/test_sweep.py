"""A sweep from its recipe to its tables, once through Snakemake."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.workflow import REPOSITORY, Project, environment

RECIPE = """\
merge_method: task_arithmetic
base_model: resources/demo/miqu-tiny
models:
  - model: resources/demo/midnight-tiny
    parameters: {weight: ${w}}
dtype: float16
"""


def configured(folder: Path, **sweep: Any) -> Project:
    own = {
        "recipe": "own.yaml",
        "space": {"w": {"grid": [0.1, 0.5]}},
        "objectives": {"demo_B/acc": "maximize"},
        "parallel": 1,
    }
    tasks = REPOSITORY / "config" / "tasks" / "demo"
    values = {
        "sweep": own | sweep,
        "max_shard_size": "10MB",
        "silence": ["rope-blend", "norms-summed"],
        "benchmark": {
            "models": [], "include_path": str(tasks), "limit": 40, "batch_size": 40,
        },
        "resources": {"benchmark_threads": 1},
    }  # fmt: skip
    (folder / "own.yaml").write_text(RECIPE)
    (folder / "cfg.yaml").write_text(yaml.safe_dump(values))
    return Project(folder)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each trial's weights that are there, by its weight."""
    trials = folder / "results" / "sweeps" / "own" / "trials"
    return {
        json.loads((path.parents[1] / "measured.json").read_text())["variables"]["w"]: (
            hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in trials.glob("*/model/*.safetensors")
    }


@pytest.mark.slow
def test_whole_sweep(tmp_path: Path) -> None:
    scratch = tmp_path / "fast"
    project = configured(tmp_path, scratch=str(scratch))
    project.build("sweep")
    folder = tmp_path / "results" / "sweeps" / "own"
    table = json.loads((folder / "table.json").read_text())
    (best,) = [row for row in table["trials"] if row["best"]]
    assert best["variables"] == {"w": 0.5}
    assert (folder / "plots" / "over-w.svg").is_file()
    assert yaml.safe_load((folder / "best.yaml").read_text())["name"] == "own"
    kept = hashes(tmp_path)
    assert list(kept) == [0.5], "the weights of the other one went"
    assert list(scratch.iterdir()) == []
    assert "Nothing to be done" in project.run("sweep").stdout

    configured(tmp_path, keep="all").build("sweep")
    found = hashes(tmp_path)
    assert sorted(found) == [0.1, 0.5]
    assert found[0.5] == kept[0.5]
    configured(tmp_path, keep="none").build("sweep")
    assert hashes(tmp_path) == {}
    configured(tmp_path, keep="all").build("sweep")
    assert hashes(tmp_path) == found, "built again, the bytes are the same"


@pytest.mark.slow
def test_a_trial_that_fails_holds_up_none(tmp_path: Path) -> None:
    """The second weight makes infinities; the third trial waits for the second one to be over."""
    configured(tmp_path, space={"w": {"grid": [0.1, 1e9, 0.5]}})
    command = [sys.executable, "-m", "shardmerge", "sweep", "cfg.yaml", "--cores", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(None), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "results" / "sweeps" / "own"
    rows = json.loads((folder / "table.json").read_text())["trials"]
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "(failed)" in (folder / "table.md").read_text()
    assert list(hashes(tmp_path)) == [0.5]


@pytest.mark.slow
def test_whole_search(tmp_path: Path) -> None:
    """Two generations of two, each a run; then nothing is left to do."""
    project = configured(
        tmp_path,
        sampler="tpe", trials=4, parallel=2, seed=1, split=True,
        space={"w": {"low": 0.1, "high": 0.9}}, start=[{"w": 0.2}],
    )  # fmt: skip
    folder = tmp_path / "results" / "sweeps" / "own"
    project.build("search")
    assert len(json.loads((folder / "search" / "state.json").read_text())["trials"]) == 2
    project.build("search")
    project.build("search")
    table = json.loads((folder / "table.json").read_text())
    assert len(table["trials"]) == 4
    assert table["trials"][0]["variables"] == {"w": 0.2}
    assert set(table["reported"].values()) == {table["best"][0], table["trials"][0]["trial"]}
    assert (folder / "plots" / "convergence.svg").is_file()
    assert "that it was not chosen by" in (folder / "best.yaml").read_text()
    assert "Nothing to be done" in project.run("search").stdout
