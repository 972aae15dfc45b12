"""Which trials are the best: within the constraints, beaten by none."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet, pareto_front
from shardmerge.sweep import tables
from shardmerge.sweep.best import best_trials, read_points
from shardmerge.sweep.sweeps import Sweep, SweepTrial


def sweep(scores: Mapping[str, Any], **changes: Any) -> Sweep:
    values: dict[str, Any] = {
        "name": "s",
        "recipe": "r.yaml",
        "objectives": {"b/acc": "maximize", "c/acc": "maximize"},
        "constraints": {},
        "keep": "best",
        "candidates": tuple(
            SweepTrial(name=name, values={"w": i}, text=f"w: {i}\n")
            for i, name in enumerate(scores)
        ),
    }
    return Sweep(**values | changes)


def points(
    scores: Mapping[str, Mapping[str, float]], excluded: Collection[str] = (), **aims: bool
) -> TrialSet:
    trials = tuple(
        Trial(
            name=name,
            variables={"w": i},
            metrics={f"{task}/acc": Measurement(value=v, stderr=0.1) for task, v in row.items()},
            status="done",
            allowed=name not in excluded,
        )
        for i, (name, row) in enumerate(scores.items())
    )
    objectives = {f"{task}/acc": up for task, up in (aims or {"b": True, "c": True}).items()}
    return TrialSet(name="s", objectives=objectives, trials=trials)


class TestBest:
    def test_balanced_one_is_first(self) -> None:
        scores = {
            "left": {"b": 0.2, "c": 1.0},
            "middle": {"b": 0.9, "c": 0.9},
            "beaten": {"b": 0.1, "c": 0.9},
            "right": {"b": 1.0, "c": 0.3},
        }
        found = best_trials(sweep(scores), points(scores))
        assert found[0] == "middle"
        assert sorted(found) == ["left", "middle", "right"]

    def test_constraints_come_first(self) -> None:
        scores = {"good": {"b": 1.0, "k": 0.5}, "allowed": {"b": 0.4, "k": 0.95}}
        one = sweep(scores, objectives={"b/acc": "maximize"}, constraints={"k/acc": ">= 0.95"})
        assert best_trials(one, points(scores, ["good"], b=True)) == ("allowed",)

    def test_none_is_allowed(self) -> None:
        scores = {"a": {"b": 1.0, "k": 0.5}}
        one = sweep(scores, objectives={"b/acc": "maximize"}, constraints={"k/acc": "> 0.5"})
        found = points(scores, ["a"], b=True)
        data = tables.table_data(one, found, best_trials(one, found), {}, {})
        assert data["best"] == []
        assert "no best" in tables.table_markdown(data)
        assert tables.best_recipe(one, data).startswith("#")

    def test_minimize(self) -> None:
        scores = {"a": {"b": 3.0}, "b": {"b": 2.0}}
        one = sweep(scores, objectives={"b/acc": "minimize"})
        assert best_trials(one, points(scores, b=False)) == ("b",)


def result(path: Path, model: str, task: str, acc: float) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {task: {"acc,none": acc, "acc_stderr,none": 0.03}}
    path.write_text(json.dumps({
        "model_name": model, "requested_task": task, "results": rows, "config": {},
        "n-samples": {task: {"effective": 50}}, "higher_is_better": {task: {"acc": True}},
    }))  # fmt: skip
    return str(path)


class TestTables:
    def test_round_trip(self, tmp_path: Path) -> None:
        names = {"t1": 0.5, "t2": 0.75}
        one = sweep(names, objectives={"b/acc": "maximize"})
        files = {n: [result(tmp_path / n / "b.json", f"s-{n}", "b", v)] for n, v in names.items()}
        found = read_points(one, files)
        best = best_trials(one, found)
        verdicts = {"t1": {"b/acc": "worse"}}
        references = {"base": {"b/acc": Measurement(value=0.25)}}
        data = json.loads(json.dumps(tables.table_data(one, found, best, references, verdicts)))
        lines = tables.table_csv(data).splitlines()
        assert lines[0] == "trial,w,b/acc,b/acc stderr,b/acc questions,status,fulfils,best"
        assert lines[2] == "t2,1,0.75,0.03,50,done,True,True"
        text = tables.table_markdown(data)
        assert "| t1 | 0 | 0.500 ± 0.030 worse |" in text
        assert "| **t2** | 1 | 0.750 ± 0.030 |" in text
        assert "| base |  | 0.250 |" in text
        assert "50 questions tell little" in text
        recipe = tables.best_recipe(one, data)
        assert recipe.endswith("w: 1\n")
        assert "# b/acc: 0.750" in recipe

    def test_what_breaks_a_bound_is_excluded_wherever_trials_are_shown(
        self, tmp_path: Path
    ) -> None:
        names = {"t1": 0.5, "t2": 0.75}
        aims = {"objectives": {"b/acc": "maximize"}, "constraints": {"b/acc": "< 0.6"}}
        one = sweep(names, **aims)
        files = {n: [result(tmp_path / n / "b.json", f"s-{n}", "b", v)] for n, v in names.items()}
        found = read_points(one, files)
        assert best_trials(one, found) == pareto_front(found) == ("t1",)
        told = tables.table_markdown(tables.table_data(one, found, ("t1",), {}, {}))
        assert "| t2 (excluded) |" in told

    def test_planned_trials_have_no_scores(self) -> None:
        found = read_points(sweep({"t": 1}), {})
        assert [t.status for t in found.trials] == ["planned"]

    def test_unknown_metric_is_told_with_a_guess(self, tmp_path: Path) -> None:
        one = sweep({"t": 1}, objectives={"b/acc_norm": "maximize"})
        with pytest.raises(UserError, match=r"'b/acc_norm'.*\n.*b/acc"):
            read_points(one, {"t": [result(tmp_path / "b.json", "s-t", "b", 0.5)]})
