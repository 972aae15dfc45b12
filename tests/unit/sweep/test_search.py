"""A search's logic with made-up measurements: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.benchmark.trials import Measurement
from shardmerge.sweep import search
from shardmerge.sweep.bounds import distance, is_within
from shardmerge.sweep.dimensions import distributions, parameters_of, point_of
from shardmerge.sweep.search import advance
from shardmerge.sweep.search_plan import Eyes, Metrics, SearchPlan
from shardmerge.sweep.searched import Searched
from shardmerge.sweep.space import Point, read_space

pytest.importorskip("optuna")

SPACE = {
    "w": {"low": 0, "high": 1},
    "m": {"choice": ["a", "b"]},
    "k": {"low": 1, "high": 9, "step": 1},
}


def planned(**changes: Any) -> SearchPlan:
    values: dict[str, Any] = {
        "name": "own", "sampler": "tpe", "variables": read_space(SPACE, "space"),
        "objectives": {"t/acc": "maximize"}, "constraints": {}, "trials": 16, "parallel": 4,
        "seed": 3, "rungs": (), "start": (), "basis": "recipe", "where": "sweep",
    }  # fmt: skip
    return SearchPlan(**values | changes)


class World:
    """Measures points by a formula, and remembers what it was asked for.

    Args:
        broken: Points that fail, by their place in the order of measurements.
    """

    def __init__(self, broken: Sequence[int] = (), worse: bool = False) -> None:
        self.measured: dict[tuple[str, int | None], Metrics] = {}
        self.tries: list[str] = []
        self.broken, self.worse = broken, worse

    def eyes(self) -> Eyes:
        return Eyes(
            look=lambda point, asked: self.measured.get((json.dumps(point), asked)),
            name=json.dumps,
            worse=lambda point, others, asked: self.worse and bool(others) and point["m"] == "a",
        )

    def measure(self, found: Searched, most: int | None = None) -> bool:
        """Measure what is asked for, so many at most; return whether all could be measured."""
        good = True
        waiting = [t for t in found.trials if t.status == "asked"]
        for trial in waiting[:most]:
            key = json.dumps(trial.values), trial.questions
            if key in self.measured:
                continue
            self.tries.append(f"{key[0]} {key[1]}")
            if len(self.tries) - 1 in self.broken:
                good = False
                continue
            score = 1 - (trial.values["w"] - 0.7) ** 2 + 0.01 * trial.values["k"]
            self.measured[key] = {
                "t/acc": Measurement(value=score), "u/acc": Measurement(value=trial.values["w"])
            }  # fmt: skip
        return good


def run(plan: SearchPlan, folder: Path, world: World) -> Searched:
    """Search to the end."""
    failed = False
    for _ in range(100):
        found = advance(plan, folder, world.eyes(), failed=failed, dry=False)
        if found.finished:
            return found
        failed = not world.measure(found)
    raise AssertionError("it has no end")


def values(found: Searched) -> list[Point]:
    return [trial.values for trial in found.trials]


@pytest.mark.parametrize(
    ("sampler", "constraints"), [("tpe", {"u/acc": ">= 0.2"}), ("nsga2", {}), ("cmaes", {})]
)
def test_killed_anywhere_it_goes_on_with_the_same_trials(
    tmp_path: Path, sampler: str, constraints: dict[str, str]
) -> None:
    plan = planned(sampler=sampler, constraints=constraints)
    world = World()
    whole = run(plan, tmp_path / "whole", world)
    assert len(whole.trials) == 16
    assert {t.status for t in whole.trials} == {"done"}
    again = World()
    for step in range(40):
        # asked and killed before anything is measured; killed with half a generation measured
        folder = tmp_path / "killed"
        found = advance(plan, folder, again.eyes(), failed=False, dry=False)
        same = advance(plan, folder, again.eyes(), failed=False, dry=False)
        assert same == found
        if found.finished:
            break
        again.measure(found, most=1 + step % 3)
    assert values(found) == values(whole)
    assert sorted(again.tries) == sorted(world.tries)
    assert len(set(again.tries)) == len(again.tries)


def test_killed_while_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, world = planned(), World()
    whole = run(plan, tmp_path / "whole", world)
    folder, own = tmp_path / "killed", World()
    first = advance(plan, folder, own.eyes(), failed=False, dry=False)
    own.measure(first)
    before = (folder / search.JOURNAL).read_bytes()

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search, "_note_known", killed)  # told and asked, not kept
        with pytest.raises(KeyboardInterrupt):
            advance(plan, folder, own.eyes(), failed=False, dry=False)
    assert (folder / search.JOURNAL).read_bytes() == before
    assert values(run(plan, folder, own)) == values(whole)


def test_seed_and_dry_run(tmp_path: Path) -> None:
    one = advance(planned(), tmp_path / "a", World().eyes(), failed=False, dry=True)
    assert not (tmp_path / "a").exists()
    two = advance(planned(), tmp_path / "b", World().eyes(), failed=False, dry=False)
    other = advance(planned(seed=4), tmp_path / "c", World().eyes(), failed=False, dry=False)
    assert values(one) == values(two) != values(other)


def test_it_learns_and_says_what_matters(tmp_path: Path) -> None:
    found = run(planned(trials=40), tmp_path, World())
    late = [abs(v["w"] - 0.7) for v in values(found)[20:]]
    early = [abs(v["w"] - 0.7) for v in values(found)[:10]]
    assert sum(late) / len(late) < sum(early) / len(early)
    shares = found.importances["t/acc"]
    assert max(shares, key=lambda name: shares[name]) == "w"


def test_failed_trials_do_not_stop_it(tmp_path: Path) -> None:
    world = World(broken=[1, 6])
    found = run(planned(), tmp_path, world)
    assert [t.status for t in found.trials].count("failed") == 2
    assert len(found.trials) == 16
    assert len(set(world.tries)) == len(world.tries)


def test_a_generation_that_fails_as_a_whole_stops_it(tmp_path: Path) -> None:
    world = World()
    found = advance(planned(), tmp_path, world.eyes(), failed=False, dry=False)
    before = (tmp_path / search.JOURNAL).read_bytes()
    with pytest.raises(UserError, match="no trial of generation 0 could be measured"):
        advance(planned(), tmp_path, world.eyes(), failed=True, dry=False)
    assert (tmp_path / search.JOURNAL).read_bytes() == before
    world.measure(found)
    assert len(run(planned(), tmp_path, world).trials) == 16


def test_a_small_space_is_measured_once(tmp_path: Path) -> None:
    space = read_space({"w": {"grid": [0.1, 0.7]}, "m": {"choice": ["a"]}, "k": {"grid": [1]}}, "s")
    world = World()
    found = run(planned(variables=space), tmp_path, world)
    assert len(found.trials) == 16
    assert len(world.tries) == 2


def test_stopped_after_few_questions(tmp_path: Path) -> None:
    world = World(worse=True)
    found = run(planned(rungs=(50, 200)), tmp_path, world)
    stopped = [t for t in found.trials if t.status == "stopped"]
    assert stopped
    assert {(t.values["m"], t.questions) for t in stopped} == {("a", 50)}
    assert {t.questions for t in found.trials if t.status == "done"} == {None}
    asked = [line.split()[-1] for line in world.tries]
    assert asked.count("50") == 16
    assert asked.count("200") == asked.count("None") == 16 - len(stopped)


def test_stopped_beyond_a_constraint(tmp_path: Path) -> None:
    world = World()
    plan = planned(rungs=(50,), constraints={"u/acc": ">= 0.5"})

    def with_error(found: Searched) -> None:
        world.measure(found)
        for metrics in world.measured.values():
            one = metrics["u/acc"]
            metrics["u/acc"] = Measurement(value=one.value, stderr=0.01, questions=50)  # type: ignore[index]

    found = advance(plan, tmp_path, world.eyes(), failed=False, dry=False)
    with_error(found)
    found = advance(plan, tmp_path, world.eyes(), failed=False, dry=False)
    low = [t.status for t in found.trials if t.values["w"] < 0.4]
    high = [t.status for t in found.trials if t.values["w"] > 0.5]
    assert set(low) == {"stopped"}
    assert set(high) == {"asked"}


def test_start_comes_first(tmp_path: Path) -> None:
    start = ({"w": 0.25, "m": "b", "k": 9},)
    found = run(planned(start=start), tmp_path, World())
    assert found.trials[0].values == start[0]
    assert found.start == 1
    with pytest.raises(UserError, match="w is from"):
        advance(planned(start=({"w": 2, "m": "b", "k": 9},)), tmp_path / "b", World().eyes(),
                failed=False, dry=False)  # fmt: skip


def test_another_search_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    world = World()
    run(planned(), tmp_path, world)
    with pytest.raises(UserError, match="of another kind"):
        run(planned(seed=9), tmp_path, world)
    assert len(run(planned(trials=24), tmp_path, world).trials) == 24


def test_damaged_journal(tmp_path: Path) -> None:
    run(planned(), tmp_path, World())
    path = tmp_path / search.JOURNAL
    shutil.copy(path, tmp_path / "kept")
    path.write_text("no journal\n" + path.read_text())
    with pytest.raises(UserError, match="is no journal"):
        run(planned(), tmp_path, World())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "cmaes", "constraints": {"u/acc": "> 0"}}, "one objective"),
        ({"rungs": (50, 20)}, "must rise"),
        ({"trials": 1, "start": ({}, {})}, "more points"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        advance(planned(**changes), tmp_path, World().eyes(), failed=False, dry=False)


def test_points_and_parameters() -> None:
    space = {
        "g": {"low": 0.1, "high": 10, "log": True, "points": 2},
        "n": {"grid": [1, 2, 4]}, "c": {"choice": [4, 1, True]},
    }  # fmt: skip
    variables = read_space(space, "space")
    kinds = {name: type(one).__name__ for name, one in distributions(variables).items()}
    assert kinds == {
        "g[0]": "FloatDistribution", "g[1]": "FloatDistribution",
        "n": "IntDistribution", "c": "CategoricalDistribution",
    }  # fmt: skip
    point = {"g": [0.5, 2.0], "n": 4, "c": True}
    told = parameters_of(variables, point, "start")
    assert told == {"g[0]": 0.5, "g[1]": 2.0, "n": 2, "c": 2}
    assert point_of(variables, told) == point
    for wrong in ({"g": [1]}, {"g": 1}, {"n": 3}, {"c": "x"}):
        with pytest.raises(UserError):
            parameters_of(variables, point | wrong, "start")


@pytest.mark.parametrize(
    ("bound", "within", "beyond"),
    [(">= 1", 1, 0.9), ("> 1", 1.1, 1), ("<= 1", 1, 2), ("< 1", 0, 1)],
)
def test_bounds(bound: str, within: float, beyond: float) -> None:
    assert is_within(bound, within)
    assert not is_within(bound, beyond)
    assert distance(bound, within) <= 0 < distance(bound, beyond)
