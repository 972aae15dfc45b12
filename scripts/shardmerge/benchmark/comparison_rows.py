"""A table of scores and comparisons as it is written in ``table.json`` and read again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.forms import entry
from shardmerge.benchmark.agreement import Agreement

#: What a comparison may come to; see ``comparison.Comparison``.
VERDICTS = ("better", "worse", "differs", "unclear", "untested")
#: How a verdict is marked beside a score.
MARKS = {"better": " ▲", "worse": " ▼", "differs": " ≠"}
_ARROWS = {True: " ↑", False: " ↓", None: ""}
_maybe_real = forms.maybe(forms.real)
_maybe_truth = forms.maybe(forms.truth)
_maybe_text = forms.maybe(forms.text)


@dataclass(frozen=True)
class ScoreRow:
    """A cell of the benchmark table, with its 95 % interval."""

    model: str = entry(forms.text)
    label: str = entry(forms.text)
    headline: bool = entry(forms.truth)
    part_of: str | None = entry(_maybe_text, None)
    higher_is_better: bool | None = entry(_maybe_truth)
    value: float = entry(forms.real)
    stderr: float | None = entry(_maybe_real)
    low: float | None = entry(_maybe_real, None)
    high: float | None = entry(_maybe_real, None)
    settings: Mapping[str, Any] = entry(forms.table)
    notes: tuple[int, ...] = entry(forms.listed(forms.count))

    @property
    def heading(self) -> str:
        """Its label, and which way is better."""
        return self.label + _ARROWS[self.higher_is_better]

    @property
    def text(self) -> str:
        """The value with its interval and the numbers of its footnotes."""
        return value_text(self.value, self.low, self.high) + "".join(f" [{n}]" for n in self.notes)


@dataclass(frozen=True)
class Difference:
    """A model beside its reference; numbers are None where there is no test."""

    model: str = entry(forms.text)
    reference: str = entry(forms.text)
    label: str = entry(forms.text)
    headline: bool = entry(forms.truth)
    higher_is_better: bool | None = entry(_maybe_truth)
    test: str | None = entry(_maybe_text)
    difference: float | None = entry(_maybe_real)
    low: float | None = entry(_maybe_real)
    high: float | None = entry(_maybe_real)
    p: float | None = entry(_maybe_real)
    adjusted: float | None = entry(_maybe_real)
    questions: int | None = entry(forms.maybe(forms.count))
    up: int | None = entry(forms.maybe(forms.count))
    down: int | None = entry(forms.maybe(forms.count))
    verdict: str = entry(forms.one_of(lambda: VERDICTS))
    notes: tuple[str, ...] = entry(forms.listed(forms.text))

    @property
    def heading(self) -> str:
        """Its label, and which way is better."""
        return self.label + _ARROWS[self.higher_is_better]

    @property
    def text(self) -> str:
        """The difference with its interval, a hyphen where there is none."""
        if self.difference is None:
            return "-"
        return value_text(self.difference, self.low, self.high, "+")

    @property
    def answers(self) -> str:
        """How many answers differ: those won and lost, or those that are higher and lower."""
        if self.test is None:
            return "-"
        up, down = ("won", "lost") if self.test == "mcnemar" else ("higher", "lower")
        return f"{self.up or 0:,} {up}, {self.down or 0:,} {down} of {self.questions or 0:,}"

    @property
    def p_text(self) -> str:
        """The corrected p-value."""
        if self.adjusted is None:
            return "-"
        return "< 0.001" if self.adjusted < 0.001 else f"{self.adjusted:.3f}"

    @property
    def told(self) -> str:
        """What it comes to, and what there is to say of it."""
        words = {"unclear": "not clear", "untested": ""}
        return "; ".join(filter(None, [words.get(self.verdict, self.verdict), *self.notes]))


@dataclass(frozen=True)
class Scores:
    """The benchmark table as ``comparison_table.comparison_json`` writes it.

    Args:
        models: In the order of the results.
        cells: Model by model.
        footnotes: Of scores, by their number from 1.
        comparisons: Metric by metric.
        small: Sentences on what has too few questions.
        notes: Sentences on how models are compared.
        agreements: Of models with those they are made from.
    """

    models: tuple[str, ...] = entry(forms.listed(forms.text))
    cells: tuple[ScoreRow, ...] = entry(forms.listed(forms.made_of(ScoreRow)))
    footnotes: tuple[str, ...] = entry(forms.listed(forms.text))
    comparisons: tuple[Difference, ...] = entry(forms.listed(forms.made_of(Difference)), ())
    small: tuple[str, ...] = entry(forms.listed(forms.text), ())
    notes: tuple[str, ...] = entry(forms.listed(forms.text), ())
    agreements: tuple[Agreement, ...] = entry(forms.listed(forms.made_of(Agreement)), ())

    def first(self) -> dict[tuple[str, str], Difference]:
        """Return the first comparison of each model and label."""
        found: dict[tuple[str, str], Difference] = {}
        for one in self.comparisons:
            found.setdefault((one.model, one.label), one)
        return found


def value_text(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """Return a value with its interval, where it has one.

    Args:
        value: It.
        low, high: Ends of its interval.
        sign: ``+`` for a difference.
    """
    digits = 3 if abs(value) < 10 else 2
    text = f"{value:{sign}.{digits}f}"
    if low is None or high is None or not math.isfinite(high - low):
        return text
    return f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
