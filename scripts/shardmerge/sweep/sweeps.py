"""Sweeps with all their trials: what each is called, and where its files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.digest import digest
from shardmerge.base.forms import entry
from shardmerge.recipe.variants import Variant
from shardmerge.sweep.searched import STATES, Searched

#: Folder of sweeps below the results.
SWEEPS = "sweeps"
#: Questions by which a search with `split` measures its trials, and those that it reports by.
TUNED, REPORTED = "even", "odd"
_DIGITS = 10

_any = forms.holds(lambda value: True)


@dataclass(frozen=True)
class SweepTrial:
    """One recipe of a sweep.

    Args:
        name: Made from the recipe, so that the same recipe has the same name in every sweep.
        values: Of the variables.
        text: The recipe.
        status: How a search sees it; a trial of other sweeps is ``done`` when it is measured, or
            ``failed``.
        questions: The most that it is asked of a task, or None for what the configuration says.
        reported: Whether it is measured on the other half of the questions too.
    """

    name: str = entry(forms.text)
    values: Mapping[str, Any] = entry(forms.mapped(_any))
    text: str = entry(forms.text)
    status: str = entry(forms.one_of(lambda: STATES), "done")
    questions: int | None = entry(forms.maybe(forms.count), None)
    reported: bool = entry(forms.truth, False)


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Args:
        name: Of its folder.
        recipe: Path of the recipe with gaps.
        objectives: Label of a metric to ``maximize`` or ``minimize``, the most important first.
        constraints: Label of a metric to a bound, such as ``>= 0.95``.
        keep: Whose weights stay: ``best``, ``all``, ``none``.
        scratch: Folder of weights until they are measured, or None.
        candidates: Its trials.
        split: Whether trials are measured on one half of the questions, and reported on the other.
        searched: How far it is if it is a search, else None.
        weights: Of metrics whose weighted sum is the objective; else none.
    """

    name: str = entry(forms.text)
    recipe: str = entry(forms.text)
    objectives: Mapping[str, str] = entry(forms.mapped(forms.text))
    constraints: Mapping[str, str] = entry(forms.mapped(forms.text))
    keep: str = entry(forms.text)
    scratch: str | None = entry(forms.maybe(forms.text), None)
    candidates: tuple[SweepTrial, ...] = entry(forms.listed(forms.made_of(SweepTrial)))
    split: bool = entry(forms.truth, False)
    searched: Searched | None = entry(forms.maybe(forms.made_of(Searched)), None)
    weights: Mapping[str, float] = entry(forms.mapped(forms.real), default_factory=dict)

    @property
    def built(self) -> list[SweepTrial]:
        """The trials that are built: all but those that failed."""
        return [c for c in self.candidates if c.status != "failed"]

    @property
    def final(self) -> list[SweepTrial]:
        """The trials that are measured to the end now, so that their weights may go."""
        return [c for c in self.built if not (c.status == "asked" and c.questions)]

    @property
    def reported(self) -> list[SweepTrial]:
        """The trials that are measured on the other half of the questions."""
        return [c for c in self.candidates if c.reported]

    @property
    def half(self) -> str | None:
        """Which questions trials are measured by."""
        return TUNED if self.split else None

    @property
    def tasks(self) -> list[str]:
        """The tasks that it is measured by."""
        labels = [*(self.weights or self.objectives), *self.constraints]
        return list(dict.fromkeys(label.partition("/")[0] for label in labels))

    def build(self, trial: str) -> str:
        """Return the name of a trial's folder below the results."""
        return f"{SWEEPS}/{self.name}/trials/{trial}"

    def label(self, trial: str) -> str:
        """Return what a trial is called among measured models."""
        questions = next((c.questions for c in self.candidates if c.name == trial), None)
        return rung_label(self.name, trial, questions)

    def report_label(self, trial: str) -> str:
        """Return what a trial is called where the other half of the questions is asked."""
        return f"{self.name}-{trial}-{REPORTED}"

    def report_files(self, results: str, trial: str, tasks: Sequence[str]) -> list[str]:
        """Return the paths of what is measured of a trial on the other half of the questions."""
        return [f"{results}/benchmarks/{self.report_label(trial)}/{task}.json" for task in tasks]

    def result_files(self, results: str, trial: str, tasks: Sequence[str]) -> list[str]:
        """Return the paths of what is measured of a trial."""
        return [f"{results}/benchmarks/{self.label(trial)}/{task}.json" for task in tasks]

    def settled(self, results: str, trial: str) -> str:
        """Return the path of what shows that a trial is measured and its weights are seen to."""
        return f"{results}/{self.build(trial)}/measured.json"

    def variants(self, results: str) -> list[Variant]:
        """Return the trials as recipes to plan with.

        Args:
            results: The folder of results.
        """
        return [
            Variant(f"{results}/{self.build(c.name)}/recipe.yaml", c.text, self.build(c.name),
                    self.recipe)
            for c in self.built
        ]  # fmt: skip


def rung_label(sweep: str, trial: str, questions: int | None) -> str:
    """Return what a trial is called where it is asked so many questions of each task."""
    return f"{sweep}-{trial}" + (f"-q{questions}" if questions else "")


def trial_name(text: str) -> str:
    """Return the name of the trial that a recipe makes."""
    return digest(text)[:_DIGITS]
