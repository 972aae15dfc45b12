"""Sweeps as they are configured: recipe, points and aims, read into what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.recipe.benchmark_entries import whole_of
from shardmerge.recipe.recipe import folder_name
from shardmerge.recipe.settings import Settings
from shardmerge.sweep.objectives import check_label, read_objectives
from shardmerge.sweep.opened import open_recipe
from shardmerge.sweep.points import listed_points
from shardmerge.sweep.searched import SEARCHES, Asked, Searched, load_searched, state_path
from shardmerge.sweep.sweeps import Sweep, SweepTrial, trial_name


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
        asked = [Asked(values=point) for point in listed_points(config, where)]
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


def with_tasks(settings: Settings, sweeps: Sequence[Sweep]) -> Settings:
    """Return settings that measure what sweeps aim at, besides what they name themselves."""
    benchmark = settings["benchmark"]
    aims = (whole_of(benchmark, task) for sweep in sweeps for task in sweep.tasks)
    tasks = dict.fromkeys([*benchmark["tasks"], *aims])
    return Settings(settings.values | {"benchmark": benchmark | {"tasks": list(tasks)}})
