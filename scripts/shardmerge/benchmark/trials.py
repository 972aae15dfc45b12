"""Trials of a sweep as points: what varied, what was measured, how each ended.

Who builds trials makes a ``TrialSet``, and writes it with ``forms.written`` and reads it with
``forms.read``. What shows or compares trials takes it and nothing else: ``pareto_front`` here, and
in the room ``report`` ``draw_curves`` (metrics over one variable), ``draw_pareto`` (two metrics),
``draw_trial_grid`` (a metric over two variables), ``draw_parallel`` (all variables) and
``trials_page`` (the same with a pointer, in one HTML file).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.forms import entry
from shardmerge.benchmark.paired import Z, share_interval

#: How a trial may stand: still to come, measured, gone wrong, given up since others are better.
STATUSES = ("planned", "done", "failed", "stopped")

#: What a variable's value may be; other values are told by a name.
Value = str | int | float | bool

_scalar = forms.holds(
    lambda value: type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))
)


@dataclass(frozen=True)
class Measurement:
    """A metric of one trial.

    Args:
        value: The metric.
        stderr: Its standard error, or None where there is none.
        questions: How many questions it is from, or None for a metric that asks none.
    """

    value: float = entry(forms.real)
    stderr: float | None = entry(forms.maybe(forms.real), None)
    questions: int | None = entry(forms.maybe(forms.count), None)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, None where nothing tells it; of right answers by Wilson's method."""
        if self.stderr is None or not math.isfinite(self.stderr + self.value):
            return None
        if self._is_share:
            return share_interval(self.value, self.questions or 1)
        return self.value - Z * self.stderr, self.value + Z * self.stderr

    @property
    def _is_share(self) -> bool:
        """Whether the standard error is that of a share of right answers."""
        n, share = self.questions or 0, self.value
        if n < 2 or not 0 <= share <= 1 or self.stderr is None:
            return False
        return math.isclose(self.stderr, math.sqrt(share * (1 - share) / n), rel_tol=1 / n)


@dataclass(frozen=True)
class Trial:
    """One point of a space of variables.

    Args:
        name: Unique among the trials.
        variables: Name to value; a number, or a text such as a method.
        metrics: Label, such as ``demo_B/acc``, to what was measured.
        status: One of ``STATUSES``.
        allowed: Whether it is within the constraints, as far as it was measured.
    """

    name: str = entry(forms.text)
    variables: Mapping[str, Value] = entry(forms.mapped(_scalar))
    metrics: Mapping[str, Measurement] = entry(forms.mapped(forms.made_of(Measurement)))
    status: str = entry(forms.one_of(lambda: STATUSES))
    allowed: bool = entry(forms.truth, True)

    @property
    def may_be_best(self) -> bool:
        """Whether it was measured to the end, and is within the constraints."""
        return self.status == "done" and self.allowed


@dataclass(frozen=True)
class TrialSet:
    """Trials that share a recipe.

    Args:
        name: Of the sweep.
        objectives: Label of a metric to whether higher is better, the most important first.
        trials: In the order in which they were thought of.
    """

    name: str = entry(forms.text)
    objectives: Mapping[str, bool] = entry(forms.mapped(forms.truth))
    trials: tuple[Trial, ...] = entry(forms.listed(forms.made_of(Trial)))

    def variables(self) -> dict[str, list[Value]]:
        """Return each variable's values: numbers in their order, others as they are met."""
        found: dict[str, dict[Any, Value]] = {}
        for trial in self.trials:
            for name, value in trial.variables.items():
                found.setdefault(name, {}).setdefault((type(value) is bool, value), value)
        return {name: _ordered(list(values.values())) for name, values in found.items()}

    def with_metrics(self, *labels: str) -> list[Trial]:
        """Return the trials that have a number for each of the metrics."""
        return [
            trial
            for trial in self.trials
            if all(m in trial.metrics and math.isfinite(trial.metrics[m].value) for m in labels)
        ]


def is_numeric(values: list[Value]) -> bool:
    """Return whether all values of a variable are numbers."""
    return all(isinstance(value, (int, float)) and type(value) is not bool for value in values)


def pareto_front(trials: TrialSet) -> tuple[str, ...]:
    """Return the names of the trials than which no other is better in one objective and as good
    in all others, in the order of the trials; of one objective, the best.

    Only trials that are done count, within the constraints, with a number for every objective.
    """
    rows = [t for t in trials.with_metrics(*trials.objectives) if t.may_be_best]
    points = [
        tuple(t.metrics[m].value * (1 if up else -1) for m, up in trials.objectives.items())
        for t in rows
    ]
    return tuple(
        trial.name
        for trial, point in zip(rows, points, strict=True)
        if not any(_dominates(other, point) for other in points)
    )


def _dominates(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
    return other != point and all(a >= b for a, b in zip(other, point, strict=True))


def _ordered(values: list[Value]) -> list[Value]:
    return sorted(values, key=float) if is_numeric(values) else values
