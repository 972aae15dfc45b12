"""Sweeps as they are configured, with all their trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardmerge.base import forms
from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import read_text
from shardmerge.base.forms import entry
from shardmerge.benchmark.trials import Value
from shardmerge.recipe.benchmark_entries import whole_of
from shardmerge.recipe.recipe import folder_name
from shardmerge.recipe.settings import Settings
from shardmerge.recipe.variants import Variant
from shardmerge.sweep.objectives import check_label, read_objectives
from shardmerge.sweep.opened import open_recipe
from shardmerge.sweep.searched import SEARCHES, STATES, Asked, Searched, load_searched, state_path
from shardmerge.sweep.space import MOST_TRIALS, Point, drawn, grid, read_space

#: Folder of sweeps below the results.
SWEEPS = "sweeps"
#: Questions by which a search with `split` measures its trials, and those that it reports by.
TUNED, REPORTED = "even", "odd"
_DIGITS = 10
_LONGEST_SHOWN = 40

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


def read_sweeps(
    settings: Settings,
    searched: Mapping[str, Searched] = {},
    failed: Mapping[str, Sequence[str]] = {},
) -> list[Sweep]:
    """Return the sweeps of a configuration.

    Args:
        settings: The configuration.
        searched: How far searches are, by name; of others their files tell it.
        failed: Trials of other sweeps that failed, by the sweep's name.

    Raises:
        UserError: For all that is wrong with them and shows without the models.
    """
    found: dict[str, Sweep] = {}
    many = len(settings.sweeps) > 1
    for number, config in enumerate(settings.sweeps):
        where = f"configuration: sweep.{number}" if many else "configuration: sweep"
        failures = failed.get(sweep_name(config), ())
        folders = settings["sources"]
        sweep = _sweep(config, where, settings["results"], searched, failures, folders)
        if sweep.name in found:
            hint = "Give each sweep a `name`."
            raise UserError(f"two sweeps are called {sweep.name!r}", where, hint)
        found[sweep.name] = sweep
    return list(found.values())


def sweep_name(config: Mapping[str, Any]) -> str:
    """Return the name of a configured sweep."""
    return config["name"] or folder_name(Path(config["recipe"]).stem)


def trial_name(text: str) -> str:
    """Return the name of the trial that a recipe makes."""
    return digest(text)[:_DIGITS]


def _sweep(
    config: Mapping[str, Any],
    where: str,
    results: str,
    searched: Mapping[str, Searched],
    failed: Sequence[str],
    folders: Mapping[str, str],
) -> Sweep:
    recipe, name = config["recipe"], sweep_name(config)
    template, config = open_recipe(config, folders)
    objectives, weights = read_objectives(config, where)
    for label in (*(weights or objectives), *config["constraints"]):
        check_label(label, where)
    found = None
    if config["sampler"] in SEARCHES:
        found = searched.get(name) or load_searched(state_path(results, name))
        asked: Sequence[Asked] = found.trials
    else:
        _check_no_search(config, where)
        asked = [Asked(values=point) for point in _points(config, where)]
    names = {variable for one in asked for variable in one.values}
    template.check(config["space"] or names, f"{where}.space")
    reported = found.reported if found and config["split"] else ()
    candidates: dict[str, SweepTrial] = {}
    for place, one in enumerate(asked):
        text = template.render(one.values)
        trial = candidates.get(trial_name(text)) or SweepTrial(
            name=trial_name(text),
            values=one.values,
            text=text,
            status=one.status if found else "failed" if trial_name(text) in failed else "done",
            questions=one.questions,
        )
        candidates[trial.name] = replace(trial, reported=trial.reported or place in reported)
    if candidates and all(trial.status == "failed" for trial in candidates.values()):
        raise UserError("no trial could be built and measured", where, "The logs tell why.")
    return Sweep(
        name=name,
        recipe=recipe,
        objectives=objectives,
        weights=weights,
        constraints=config["constraints"],
        keep=config["keep"],
        scratch=config["scratch"],
        candidates=tuple(candidates.values()),
        split=config["split"],
        searched=found,
    )


def _check_no_search(config: Mapping[str, Any], where: str) -> None:
    """Refuse keys of a search where nothing is searched for."""
    for key, none in (("start", []), ("stop", None), ("split", False)):
        if config[key] != none:
            hint = f"Write `sampler: tpe`, or leave `{key}` out."
            raise UserError("is for a search", f"{where}.{key}", hint)


def _points(config: Mapping[str, Any], where: str) -> Sequence[Point]:
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


def with_tasks(settings: Settings, sweeps: Sequence[Sweep]) -> Settings:
    """Return settings that measure what sweeps aim at, besides what they name themselves."""
    benchmark = settings["benchmark"]
    aims = (whole_of(benchmark, task) for sweep in sweeps for task in sweep.tasks)
    tasks = dict.fromkeys([*benchmark["tasks"], *aims])
    return Settings(settings.values | {"benchmark": benchmark | {"tasks": list(tasks)}})
