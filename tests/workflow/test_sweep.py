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


def shardmerge(folder: Path, command: str) -> None:
    """Run a command of shardmerge to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "shardmerge", command, "cfg.yaml", "--cores", "2"],
        cwd=folder,
        env=environment({"PYTHONPATH": str(REPOSITORY / "scripts")}),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
    shardmerge(tmp_path, "sweep")
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


def search_to_the_end(folder: Path) -> dict[str, Any]:
    """Run the command, and return the search's state."""
    shardmerge(folder, "search")
    path = folder / "results" / "sweeps" / "own" / "search" / "state.json"
    return json.loads(path.read_text())


def measured(folder: Path) -> dict[str, int]:
    """Return when each measurement was made, by the name of what it is stored in."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob(".shardmerge/benchmarks/*.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "trials", "objectives"),
    [
        ("nsga2", 4, {"open_B/perplexity": "minimize", "perplexity/bits_per_byte": "minimize"}),
        ("cmaes", 3, {"open_B/perplexity": "minimize"}),
    ],
)
def test_rungs_after_a_kill(
    tmp_path: Path, sampler: str, trials: int, objectives: dict[str, str]
) -> None:
    """Real models, killed within a generation: nothing that was measured is measured again."""
    project = configured(
        tmp_path,
        sampler=sampler, trials=trials, parallel=2, seed=3, split=True, stop={"rungs": [7]},
        space={"w": {"low": 0.0, "high": 1.0}, "v": {"low": 0.0, "high": 1.0}},
        start=[{"w": 0.0, "v": 0.0}, {"w": 1.0, "v": 1.0}], objectives=objectives,
    )  # fmt: skip
    (tmp_path / "own.yaml").write_text(
        RECIPE.replace("${w}", '[{filter: mlp, value: "${w}"}, {value: "${v}"}]')
    )
    text = REPOSITORY / "config" / "tasks" / "demo" / "text.txt"
    values = yaml.safe_load((tmp_path / "cfg.yaml").read_text())
    if sampler == "nsga2":
        values["benchmark"]["probes"] = {"text": str(text), "measure": ["perplexity"]}
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(values))
    assert project.kill_when(lambda: bool(measured(tmp_path)), "search")
    before = measured(tmp_path)
    state = search_to_the_end(tmp_path)
    after = measured(tmp_path)
    assert {path: after[path] for path in before} == before
    assert state["finished"] and len(state["trials"]) == trials
    assert {t["status"] for t in state["trials"]} <= {"done", "stopped"}
    stopped = [t for t in state["trials"] if t["status"] == "stopped"]
    # it begins around the first point, which leaves B unlearned; the second one has it all
    assert stopped or sampler == "nsga2"
    assert {t["questions"] for t in stopped} <= {7}
    assert state["trials"][0]["values"] == {"w": 0.0, "v": 0.0}
    asked = {path.parent.name for path in tmp_path.glob("results/benchmarks/own-*/*.json")}
    assert sum(name.endswith("-q7") for name in asked) == trials, (
        "each trial was asked few questions"
    )
    full = [name for name in asked if not name.endswith(("-q7", "-odd"))]
    assert len(full) == trials - len(stopped), "no stopped trial was asked all"
    table = json.loads((tmp_path / "results" / "sweeps" / "own" / "table.json").read_text())
    assert table["report"]["comparisons"]
