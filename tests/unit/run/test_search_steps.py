"""Searches in a configuration: files of results are looked at, trials are stopped by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark.options import EvalOptions
from shardmerge.recipe.settings import Settings, load_settings
from shardmerge.run.drive import JOBS_FAILED, STATE
from shardmerge.run.expected import expected_path, load_expected, note_expected
from shardmerge.run.measured import Measured
from shardmerge.run.searching import step
from shardmerge.sweep.configured import read_sweeps

pytest.importorskip("optuna")
RECIPE = 'merge_method: linear\nmodels: [{model: one, parameters: {weight: "${w}"}}]\n'


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(RECIPE)


def settings(**sweep: Any) -> Settings:
    own = {
        "recipe": "own.yaml", "space": {"w": {"low": 0, "high": 1}}, "sampler": "tpe",
        "trials": 4, "parallel": 2, "objectives": {"t/acc": "maximize"},
    }  # fmt: skip
    return load_settings({"sweep": own | sweep})


def measure(label: str, answers: list[int], identity: str = "this one", task: str = "t") -> None:
    """Write a result of right and wrong answers as a benchmark job does, of what a run noted."""
    note_expected(expected_path("results", "own"), {label: {task: "this one"}}, dry=False)
    folder = Path("results/benchmarks", label)
    folder.mkdir(parents=True, exist_ok=True)
    share, n = sum(answers) / len(answers), len(answers)
    result = {
        "results": {"t": {"acc,none": share, "acc_stderr,none": (share * (1 - share) / n) ** 0.5}},
        "n-samples": {"t": {"effective": n, "original": n}}, "versions": {"t": 1},
        "higher_is_better": {"t": {"acc": True}}, "model_name": label, "requested_task": "t",
        "config": {}, "configs": {"t": {}}, "n-shot": {"t": 0}, "task_hashes": {"t": "h"},
        "lm_eval_version": "0", "identity": identity,
    }  # fmt: skip
    (folder / f"{task}.json").write_text(json.dumps(result))
    rows = [
        {"task": "t", "doc_id": i, "doc_hash": f"d{i}", "target_hash": "t", "prompt_hash": f"p{i}",
         "filter": "none", "metrics": ["acc"], "acc": float(right)}
        for i, right in enumerate(answers)
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{task}.samples.jsonl").write_text(lines)


def test_a_result_of_something_else_is_not_taken() -> None:
    """Such as one that an earlier search of this name left, before a source changed."""
    own = settings(parallel=1)
    step(own, dry=False)
    (first,) = read_sweeps(own)[0].candidates
    label = f"own-{first.name}"
    measure(label, [1, 0], identity="another one")
    assert [t.status for t in step(own, dry=False)["own"].trials] == ["asked"]
    expected_path("results", "own").unlink()
    assert [t.status for t in step(own, dry=False)["own"].trials] == ["asked"]
    measure(label, [1, 0])
    assert [t.status for t in step(own, dry=False)["own"].trials] == ["done", "asked"]


def test_a_search_does_not_go_on_with_other_sources() -> None:
    path = expected_path("results", "own")
    note_expected(path, {"own-a": {"t": "one"}}, dry=False)
    note_expected(path, {"own-a": {"t": "one"}, "own-b": {"t": "two"}}, dry=False)
    note_expected(path, {"own-b": {"u": "three"}}, dry=False)
    assert load_expected(path) == {"own-a": {"t": "one"}, "own-b": {"t": "two", "u": "three"}}
    with pytest.raises(UserError, match="t of own-b would be measured otherwise"):
        note_expected(path, {"own-b": {"t": "four"}}, dry=True)


def test_an_objective_may_be_a_part_of_a_probe() -> None:
    probes = {"probes": {"text": "own.yaml"}}
    sweep = settings(objectives={"kl_base/acc": "maximize"}, parallel=1).sweeps[0]
    own = load_settings({"sweep": dict(sweep), "benchmark": probes})
    step(own, dry=False)
    (first,) = read_sweeps(own)[0].candidates
    measure(f"own-{first.name}", [1, 0], task="kl")
    path = Path("results/benchmarks", f"own-{first.name}", "kl.json")
    path.write_text(path.read_text().replace('"t"', '"kl_base"'))
    assert [t.status for t in step(own, dry=False)["own"].trials] == ["done", "asked"]


def test_steps_and_a_trial_that_is_surely_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE, str(tmp_path / "told"))
    own = settings(stop={"rungs": [40]}, parallel=1, trials=2)
    step(own, dry=False)
    (first,) = read_sweeps(own)[0].candidates
    assert read_sweeps(own)[0].label(first.name) == f"own-{first.name}-q40"
    for label in (f"own-{first.name}-q40", f"own-{first.name}"):
        measure(label, [1] * 40)
        found = step(own, dry=False)["own"]
    assert [t.status for t in found.trials] == ["done", "asked"]
    second = read_sweeps(own)[0].candidates[1]
    measure(f"own-{second.name}-q40", [1, 0] * 20)
    found = step(own, dry=False)["own"]
    assert [t.status for t in found.trials] == ["done", "stopped"]
    assert (found.finished, found.best) == (True, 0)
    assert json.loads((tmp_path / "told").read_text())["own"]["finished"]


def test_what_may_be_chance_is_not_stopped() -> None:
    own = settings(stop={"rungs": [40]}, parallel=1, trials=2)
    step(own, dry=False)
    (first,) = read_sweeps(own)[0].candidates
    for label in (f"own-{first.name}-q40", f"own-{first.name}"):
        measure(label, [1] * 40)
        step(own, dry=False)
    second = read_sweeps(own)[0].candidates[1]
    measure(f"own-{second.name}-q40", [0, 0, 0] + [1] * 37)
    found = step(own, dry=False)["own"]
    assert [(t.status, t.questions) for t in found.trials] == [("done", None), ("asked", None)]


def test_failed_trials_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings()
    step(own, dry=False)
    sweep = read_sweeps(own)[0]
    measure(sweep.label(sweep.candidates[0].name), [1, 0, 1, 1])
    monkeypatch.setenv(JOBS_FAILED, "1")
    step(own, dry=False)
    sweep = read_sweeps(own)[0]
    assert [c.status for c in sweep.candidates] == ["done", "failed", "asked", "asked"]
    assert len(sweep.variants("results")) == 3


def test_dry_run_writes_nothing() -> None:
    assert len(step(settings(), dry=True)["own"].trials) == 2
    assert not Path("results").exists()


def test_refused() -> None:
    grid = {"sampler": "grid", "space": {"w": {"grid": [0, 1]}}, "trials": None}
    with pytest.raises(UserError, match="has not begun"):
        read_sweeps(settings())
    with pytest.raises(UserError, match="needs a number of trials"):
        step(settings(trials=None), dry=True)
    with pytest.raises(UserError, match="is a search"):
        step(settings(**grid), dry=True)
    with pytest.raises(UserError, match="is for a search"):
        read_sweeps(settings(**grid, split=True))


def test_halves_are_apart_and_make_the_whole() -> None:
    even, odd = (EvalOptions(half=half).asked(7) for half in ("even", "odd"))
    assert sorted([*even, *odd]) == list(range(7))
    assert list(EvalOptions(half="odd", limit=2).asked(10)) == [1, 3]
    assert list(EvalOptions(half="even", limit=0.5).asked(10)) == [0, 2, 4]
    assert list(EvalOptions(limit=9).asked(3)) == [0, 1, 2]


def test_a_rung_never_asks_more() -> None:
    model = Measured("m", "f", (), "i", 1, questions=50, half="even")
    assert model.narrowed(EvalOptions()).limit == 50
    assert model.narrowed(EvalOptions(limit=20)).limit == 20
    assert model.narrowed(EvalOptions()).identity()["half"] == "even"
    assert "half" not in EvalOptions().identity()
