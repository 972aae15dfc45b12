"""The points that a sweep tries: of a grid, drawn, or listed; and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import read_text
from shardmerge.benchmark.trials import Value
from shardmerge.sweep.space import MOST_TRIALS, Point, drawn, grid, read_space

_LONGEST_SHOWN = 40


def listed_points(config: Mapping[str, Any], where: str) -> Sequence[Point]:
    """Return the points that a sweep tries, which is no search.

    Args:
        config: The sweep, as it is configured.
        where: What to say of it in errors.

    Raises:
        UserError: If they cannot be had.
    """
    sampler, trials = config["sampler"], config["trials"]
    variables = read_space(config["space"], f"{where}.space")
    if sampler == "list":
        points = _listed(trials, where)
        names = set(config["space"]) or set(points[0])
        for point in points:
            check_point(point, names, f"{where}.trials")
    elif not variables:
        raise UserError("has no variable", f"{where}.space", "Write `space: {w: {grid: [0, 1]}}`.")
    elif sampler == "grid":
        if trials is not None:
            hint = "Leave it out, or write `sampler: random` or `sobol`."
            raise UserError("means nothing for a grid", f"{where}.trials", hint)
        points = grid(variables, where)
    else:
        if type(trials) is not int:
            hint = "Write `trials: 16`."
            raise UserError(f"`sampler: {sampler}` needs a number of trials", where, hint)
        points = drawn(variables, sampler, trials, config["seed"])
    return [{name: _plain(value, where) for name, value in point.items()} for point in points]


def _listed(trials: Any, where: str) -> Sequence[Point]:
    where = f"{where}.trials"
    if isinstance(trials, str):
        where = trials
        try:
            trials = json.loads(read_text(trials))
        except (ValueError, RecursionError):
            raise UserError("is no JSON", where) from None
    if not (isinstance(trials, list) and trials and all(isinstance(t, dict) for t in trials)):
        raise UserError("is no list of maps from variable to value", where)
    if len(trials) > MOST_TRIALS:
        raise UserError(f"lists {len(trials):,} trials; {MOST_TRIALS:,} are the most", where)
    return trials


def check_point(point: Point, names: set[str], where: str) -> None:
    """Make sure that a point has a value of each variable.

    Raises:
        UserError: If it has not.
    """
    for name in names - point.keys():
        raise UserError(f"a trial has no value of {name!r}", where, did_you_mean(name, point))
    for name in point.keys() - names:
        raise UserError(f"{name!r} is no variable", where, did_you_mean(name, names))


def _plain(value: Any, where: str) -> Any:
    """Return a value as JSON has it; YAML knows dates and others."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        hint = "Put it in quotes if it is a text."
        raise UserError(f"{str(value)[:80]!r} cannot be a value", where, hint) from None


def plot_value(value: Any) -> Value:
    """Return a variable's value as tables and plots have it: what is no number or word is cut."""
    if isinstance(value, str | int | float | bool):
        return value
    text = canonical_json(value)
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[: _LONGEST_SHOWN - 8]}... {digest(value)[:4]}"
