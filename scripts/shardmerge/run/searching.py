"""A step of the configuration's searches, while the workflow is read: tell, then ask.

The command `shardmerge search` runs the workflow once for each generation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shardmerge.base import claims, forms
from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import read_text, write_json
from shardmerge.recipe.benchmark_entries import whole_of
from shardmerge.recipe.settings import Settings
from shardmerge.run.drive import follows_failed_jobs, tell_state
from shardmerge.run.expected import expected_path, is_expected, load_expected
from shardmerge.run.measured import folder_digest
from shardmerge.sweep.best import best_trials, read_metrics, read_points
from shardmerge.sweep.configured import read_sweeps, sweep_name
from shardmerge.sweep.evidence import is_surely_worse
from shardmerge.sweep.genome import Genome
from shardmerge.sweep.objectives import read_objectives
from shardmerge.sweep.opened import open_recipe
from shardmerge.sweep.points import check_point
from shardmerge.sweep.search import JOURNAL, advance
from shardmerge.sweep.search_plan import Eyes, Metrics, SearchPlan
from shardmerge.sweep.searched import SEARCHES, Searched, state_path
from shardmerge.sweep.space import Point, read_space
from shardmerge.sweep.sweeps import Sweep, rung_label, trial_name
from shardmerge.sweep.template import Template


def step(settings: Settings, *, dry: bool) -> dict[str, Searched]:
    """Return how far each search is, one step further if its generation is measured.

    Args:
        settings: The configuration.
        dry: Whether nothing is written.

    Raises:
        UserError: If none is configured, or one cannot go on.
    """
    found = {}
    many = len(settings.sweeps) > 1
    for number, config in enumerate(settings.sweeps):
        if config["sampler"] in SEARCHES:
            where = f"configuration: sweep.{number}" if many else "configuration: sweep"
            found[sweep_name(config)] = _step(config, settings, where, dry=dry)
    if not found:
        hint = f"Write `sampler: {SEARCHES[0]}` and a number of `trials`."
        raise UserError("no `sweep` is a search", "configuration", hint)
    tell_state({name: _state(search) for name, search in found.items()})
    return found


def _step(config: Mapping[str, Any], settings: Settings, where: str, *, dry: bool) -> Searched:
    plan = search_plan(config, settings, where)
    state = state_path(settings["results"], plan.name)
    tasks = _tasks(plan, settings)
    recipe, _ = open_recipe(config, settings["sources"])
    eyes = _Files(plan, recipe, settings["results"], tasks).eyes()
    failed = follows_failed_jobs()
    if dry:
        found = advance(plan, state.parent, eyes, failed=failed, dry=True)
        return _with_best(found, plan.name, tasks, settings)
    with claims.claimed(state.parent / JOURNAL):
        found = advance(plan, state.parent, eyes, failed=failed, dry=False)
        found = _with_best(found, plan.name, tasks, settings)
        write_json(state, forms.written(found))
    return found


def search_plan(config: Mapping[str, Any], settings: Settings, where: str) -> SearchPlan:
    """Return what a configured search is about.

    Raises:
        UserError: If something is missing.
    """
    if type(config["trials"]) is not int:
        hint = "Write `trials: 40`."
        raise UserError(f"`sampler: {config['sampler']}` needs a number of trials", where, hint)
    recipe, config = open_recipe(config, settings["sources"])
    objectives, weights = read_objectives(config, where)
    if weights and config["stop"]:
        hint = "Leave `stop` out, or write `maximize` or `minimize` for single metrics."
        raise UserError("rungs compare single metrics, and no sums", f"{where}.stop", hint)
    variables = read_space(config["space"], f"{where}.space")
    if not variables:
        raise UserError(
            "has no variable", f"{where}.space", "Write `space: {w: {low: 0, high: 1}}`."
        )
    text = read_text(config["recipe"])
    recipe.check(config["space"], f"{where}.space")
    for point in config["start"]:
        check_point(point, set(config["space"]), f"{where}.start")
    benchmark = settings["benchmark"]
    return SearchPlan(
        name=sweep_name(config),
        sampler=config["sampler"],
        variables=variables,
        objectives=objectives,
        weights=weights,
        constraints=config["constraints"],
        trials=config["trials"],
        parallel=config["parallel"],
        seed=config["seed"],
        rungs=(config["stop"] or {}).get("rungs", ()),
        start=config["start"],
        basis=[text, config["split"], benchmark["limit"], folder_digest(benchmark["include_path"])],
        where=where,
    )


class _Files:
    """What is measured of a search's trials, in the files of results."""

    def __init__(
        self, plan: SearchPlan, recipe: Template | Genome, results: str, tasks: Sequence[str]
    ) -> None:
        self._plan, self._results = plan, results
        self._template = recipe
        self._tasks = tasks
        self._expected = load_expected(expected_path(results, plan.name))

    def eyes(self) -> Eyes:
        return Eyes(look=self._look, name=self._name, worse=self._worse)

    def _name(self, point: Point) -> str:
        return trial_name(self._template.render(point))

    def _measured(self, point: Point, questions: int | None) -> list[str]:
        """Return the results of a point; none unless all are there, and of what was asked for."""
        label = rung_label(self._plan.name, self._name(point), questions)
        noted = self._expected.get(label, {})
        paths = {t: f"{self._results}/benchmarks/{label}/{t}.json" for t in self._tasks}
        there = all(is_expected(path, noted.get(task)) for task, path in paths.items())
        return list(paths.values()) if there else []

    def _look(self, point: Point, questions: int | None) -> Metrics | None:
        paths = self._measured(point, questions)
        return read_metrics(paths, self._plan.weights) if paths else None

    def _worse(self, point: Point, others: Sequence[Point], questions: int) -> bool:
        own = self._measured(point, questions)
        rivals = [self._measured(other, questions) for other in others]
        there = [paths for paths in rivals if paths and paths != own]
        return is_surely_worse(own, there, self._plan.objectives, self._plan.constraints)


def _tasks(plan: SearchPlan, settings: Settings) -> list[str]:
    """Return what a search looks at: tasks, and probes as a whole."""
    labels = (*(plan.weights or plan.objectives), *plan.constraints)
    whole = (whole_of(settings["benchmark"], label.partition("/")[0]) for label in labels)
    return list(dict.fromkeys(whole))


def _with_best(found: Searched, name: str, tasks: Sequence[str], settings: Settings) -> Searched:
    """Return how far a search is, with the best of its trials."""
    (sweep,) = (s for s in read_sweeps(settings, {name: found}) if s.name == name)
    results = settings["results"]
    files = {
        c.name: paths
        for c in sweep.built
        if c.status != "asked"
        and all(map(os.path.isfile, paths := sweep.result_files(results, c.name, tasks)))
    }
    best = best_trials(sweep, read_points(sweep, files))
    return replace(found, best=_place(sweep, found, best[0])) if best else found


def _place(sweep: Sweep, found: Searched, name: str) -> int:
    values = next(c.values for c in sweep.candidates if c.name == name)
    return next(i for i, trial in enumerate(found.trials) if trial.values == values)


def _state(search: Searched) -> dict[str, Any]:
    return {
        "generation": search.generation,
        "finished": search.finished,
        "trials": len(search.trials),
        "state": digest(forms.written(search)),
    }
