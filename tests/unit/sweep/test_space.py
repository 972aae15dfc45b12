"""Points of a space: all of a grid, or drawn; the same ones each time."""

from __future__ import annotations

from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.sweep.space import Variable, drawn, grid, read_space


def space(**rules: dict[str, Any]) -> list[Variable]:
    return read_space(rules, "space")


class TestGrid:
    def test_last_variable_varies_fastest(self) -> None:
        points = grid(space(a={"grid": [1, 2]}, b={"choice": ["x", "y"]}), "sweep")
        assert points == [
            {"a": 1, "b": "x"},
            {"a": 1, "b": "y"},
            {"a": 2, "b": "x"},
            {"a": 2, "b": "y"},
        ]

    def test_steps_are_as_exact_as_they_are_written(self) -> None:
        points = grid(space(w={"low": 0.1, "high": 0.7, "step": 0.2}), "sweep")
        assert [p["w"] for p in points] == [0.1, 0.3, 0.5, 0.7]

    def test_whole_steps_stay_whole(self) -> None:
        points = grid(space(k={"low": 1, "high": 7, "step": 3}), "sweep")
        assert [repr(p["k"]) for p in points] == ["1", "4", "7"]

    def test_points_vary_by_themselves(self) -> None:
        points = grid(space(g={"grid": [0, 1], "points": 2}), "sweep")
        assert [p["g"] for p in points] == [[0, 0], [0, 1], [1, 0], [1, 1]]

    def test_range_without_steps_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"sweep\.space\.w.*needs a list"):
            grid(space(w={"low": 0, "high": 1}), "sweep")

    def test_too_many_are_refused_before_they_are_made(self) -> None:
        with pytest.raises(UserError, match=r"10,000,000,000 points"):
            grid(space(g={"grid": list(range(10)), "points": 10}), "sweep")


class TestDrawn:
    @pytest.mark.parametrize("sampler", ["random", "sobol"])
    def test_same_seed_same_points(self, sampler: str) -> None:
        if sampler == "sobol":
            pytest.importorskip("scipy")
        variables = space(w={"low": 0.5, "high": 2}, m={"choice": ["a", "b", "c"]})
        points = drawn(variables, sampler, 16, 7)
        assert points == drawn(variables, sampler, 16, 7)
        assert points != drawn(variables, sampler, 16, 8)
        assert all(0.5 <= p["w"] <= 2 for p in points)
        assert {p["m"] for p in points} == {"a", "b", "c"}

    def test_random_points_are_the_same_on_every_machine(self) -> None:
        (point,) = drawn(space(w={"low": 0, "high": 1}), "random", 1, 0)
        assert point == {"w": 0.844422}

    def test_sobol_points_fill_the_space(self) -> None:
        pytest.importorskip("scipy")
        points = drawn(space(w={"low": 0, "high": 1}), "sobol", 8, 0)
        assert sorted(int(p["w"] * 8) for p in points) == list(range(8))

    def test_logarithm(self) -> None:
        points = drawn(space(w={"low": 0.001, "high": 10, "log": True}), "random", 400, 1)
        assert 70 < sum(p["w"] < 0.01 for p in points) < 130


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"grid": [1], "low": 0}, "not clear"),
        ({"low": 0}, "not clear"),
        ({"points": 2}, "not clear"),
        ({"grid": [1], "step": 1}, "mean nothing"),
        ({"low": 1, "high": 1}, "less than"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"low": 1, "high": 2, "log": True, "step": 1}, "do not go together"),
        ({"low": 0, "high": 1, "step": 1e-9}, "values"),
    ],
)
def test_mistakes_are_told(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space(w=rule)
