"""Trials of sweeps that failed in the run before: the others go on, and the tables tell them.

A trial is built when an earlier one is settled, so that few weights are on disk. One that fails
would hold up all behind it. So a run notes what each trial waits for; the next one, which is told
that jobs failed, leaves out trials that waited for nothing any more and are not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.recipe.settings import Settings
from shardmerge.run.drive import follows_failed_jobs
from shardmerge.sweep.configured import sweep_name
from shardmerge.sweep.failures import keep_failed, load_failed
from shardmerge.sweep.searched import SEARCHES
from shardmerge.sweep.settled import identity_in


def waits_path(results: str) -> Path:
    """Return the path of what a run notes of the order of trials."""
    return Path(results, "sweeps", "waits.json")


def failures(settings: Settings, *, sweeping: bool, dry: bool) -> Mapping[str, Sequence[str]]:
    """Return the trials of each plain sweep that have failed.

    A run of the target `sweep` tries all of them again, unless it follows a run whose jobs failed.

    Args:
        settings: The configuration.
        sweeping: Whether the target `sweep` is asked for here.
        dry: Whether nothing is written.

    Raises:
        UserError: If a file is damaged.
    """
    results = settings["results"]
    names = [sweep_name(own) for own in settings.sweeps if own["sampler"] not in SEARCHES]
    found: dict[str, Sequence[str]] = {}
    for name in names:
        if not sweeping:
            found[name] = load_failed(results, name)
            continue
        if follows_failed_jobs():
            found[name] = [*load_failed(results, name), *_newly_failed(results, name)]
        if not dry:
            keep_failed(results, name, found.get(name, ()))
    return found


def _newly_failed(results: str, name: str) -> list[str]:
    path = waits_path(results)
    waits: dict[str, Any] = load_json(path) if path.is_file() else {}

    def is_measured(build: str) -> bool:
        settled = Path(results, build, "measured.json")
        return build in waits and identity_in(settled) == waits[build]["identity"]

    try:
        return [
            told["trial"]
            for build, told in waits.items()
            if told["sweep"] == name
            and not is_measured(build)
            and (told["after"] is None or is_measured(told["after"]))
        ]
    except (KeyError, TypeError):
        raise UserError("is damaged", str(path), "Delete it, and run the sweep again.") from None
