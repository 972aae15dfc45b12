"""The space of a sweep: what each variable may be, and which points are tried."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shardmerge.base.errors import UserError

#: Trials of one sweep: Snakemake's graph is made in seconds up to here.
MOST_TRIALS = 2000
#: Digits of a number that is drawn from a range without steps.
_DIGITS = 6

#: Value of each variable.
Point = Mapping[str, Any]


@dataclass(frozen=True)
class ValueList:
    """Values that are listed."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """Return the value at a share of the way, 0 to 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, evenly spread in themselves or in their logarithm."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """Return the number at a share of the way, 0 to 1, with few digits."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + share * (high - low))
        else:
            value = self.low + share * (self.high - self.low)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """Return a number of the range with few digits."""
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Variable:
    """What a name in a recipe stands for.

    Args:
        name: As in ``${name}``.
        domain: What each of its values may be.
        points: How many values it is a list of; None for one value that is no list.
    """

    name: str
    domain: ValueList | Range
    points: int | None = None

    @property
    def width(self) -> int:
        """How many values vary by themselves."""
        return self.points or 1

    def value(self, parts: Sequence[Any]) -> Any:
        """Return what the name stands for, of ``width`` values."""
        return list(parts) if self.points else parts[0]


def read_space(space: Mapping[str, Mapping[str, Any]], where: str) -> list[Variable]:
    """Return the variables of a configured space.

    Args:
        space: As the schema has it.
        where: What to say in errors.

    Raises:
        UserError: If a variable is not one of the forms that there are.
    """
    return [_variable(name, rule, f"{where}.{name}") for name, rule in space.items()]


def _variable(name: str, rule: Mapping[str, Any], where: str) -> Variable:
    forms = [key for key in ("grid", "choice", "low", "high") if key in rule]
    points = rule.get("points")
    if forms in (["grid"], ["choice"]):
        if "log" in rule or "step" in rule:
            raise UserError("lists its values, so that `log` and `step` mean nothing", where)
        return Variable(name, ValueList(tuple(rule[forms[0]])), points)
    if forms != ["low", "high"]:
        hint = "Write `grid: [...]`, `choice: [...]`, or `low` and `high`."
        raise UserError("is not clear about its values", where, hint)
    low, high, log, step = rule["low"], rule["high"], rule.get("log", False), rule.get("step")
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise UserError(f"`low` ({low}) must be less than `high` ({high})", where)
    if step is None:
        if log and low <= 0:
            raise UserError("`log` needs a `low` above 0", where)
        return Variable(name, Range(float(low), float(high), log), points)
    if log:
        raise UserError("`log` and `step` do not go together", where)
    return Variable(name, ValueList(_steps(low, high, step, where)), points)


def _steps(low: float, high: float, step: float, where: str) -> tuple[float, ...]:
    """Return the numbers of a range, as exact as they are written; whole ones stay whole."""
    first, last, by = (Decimal(repr(number)) for number in (low, high, step))
    count = int((last - first) / by) + 1
    if count > MOST_TRIALS:
        raise UserError(f"`step` makes {count:,} values; {MOST_TRIALS:,} are the most", where)
    whole = all(isinstance(number, int) for number in (low, high, step))
    numbers = (first + k * by for k in range(count))
    return tuple(int(n) if whole else float(n) for n in numbers)


def grid(variables: Sequence[Variable], where: str) -> list[Point]:
    """Return all points, the last variable varying fastest.

    Raises:
        UserError: If a variable has no list of values, or there are too many points.
    """
    axes: list[Sequence[Any]] = []
    for variable in variables:
        if isinstance(variable.domain, Range):
            raise UserError(
                "`sampler: grid` needs a list of values",
                f"{where}.space.{variable.name}",
                "Write `grid: [...]` or a `step`, or choose `sampler: sobol`.",
            )
        axes += [variable.domain.values] * variable.width
    count = math.prod(map(len, axes))
    if count > MOST_TRIALS:
        raise UserError(
            f"the grid has {count:,} points; {MOST_TRIALS:,} trials are the most",
            where,
            "Write `sampler: sobol` and a number of `trials`, or fewer values.",
        )
    return [_point(variables, parts) for parts in itertools.product(*axes)]


def drawn(variables: Sequence[Variable], sampler: str, trials: int, seed: int) -> list[Point]:
    """Return points that are drawn; the same for the same arguments.

    Args:
        variables: What varies.
        sampler: ``random`` or ``sobol``.
        trials: How many points; those that come twice count once.
        seed: Of the drawing.
    """
    width = sum(variable.width for variable in variables)
    rows = _random(width, trials, seed) if sampler == "random" else _sobol(width, trials, seed)
    domains = [variable.domain for variable in variables for _ in range(variable.width)]
    return [
        _point(variables, [d.at(share) for d, share in zip(domains, row, strict=True)])
        for row in rows
    ]


def _random(width: int, trials: int, seed: int) -> Iterator[Sequence[float]]:
    source = random.Random(seed)
    return ([source.random() for _ in range(width)] for _ in range(trials))


def _sobol(width: int, trials: int, seed: int) -> Sequence[Sequence[float]]:
    try:
        from scipy.stats import qmc
    except ModuleNotFoundError:
        raise UserError("needs scipy", "`sampler: sobol`", "Run `make env`.") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # any number of points will do
        return qmc.Sobol(width, scramble=True, rng=seed).random(trials).tolist()


def _point(variables: Sequence[Variable], parts: Sequence[Any]) -> Point:
    rest = iter(parts)
    return {v.name: v.value(list(itertools.islice(rest, v.width))) for v in variables}
