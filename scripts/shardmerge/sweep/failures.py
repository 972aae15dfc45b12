"""Trials that could not be built or measured: which they are, and what they left on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from shardmerge.base import claims
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, write_json
from shardmerge.plan.paths import record_path
from shardmerge.plan.records import is_as_recorded
from shardmerge.sweep.scratch import leave_scratch


def failed_trials_path(results: str, sweep: str) -> Path:
    """Return the path of the list of a sweep's trials that failed."""
    return Path(results, "sweeps", sweep, "failed.json")


def load_failed(results: str, sweep: str) -> list[str]:
    """Return the names of the trials that failed in the last run of a sweep.

    Raises:
        UserError: If their list is damaged.
    """
    path = failed_trials_path(results, sweep)
    if not path.is_file():
        return []
    names = load_json(path).get("failed")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError("is damaged", str(path), "Delete it; all trials are then tried again.")
    return names


def keep_failed(results: str, sweep: str, names: Sequence[str]) -> None:
    """Write the list of a sweep's trials that failed; none is left if there are none."""
    path = failed_trials_path(results, sweep)
    if names:
        write_json(path, {"failed": list(names)})
    else:
        path.unlink(missing_ok=True)


def drop_weights(model: Path, say: Callable[[str], None]) -> None:
    """Delete the weights of a trial that failed, as far as they are as our jobs wrote them.

    Args:
        model: Its model's folder.
        say: Takes a line for what stays.
    """
    for path in sorted(model.rglob("*.safetensors")):
        drop_file(path, say)
    leave_scratch(model)


def drop_file(path: Path, say: Callable[[str], None]) -> int:
    """Delete a file of weights that is as our job wrote it; return its bytes.

    Args:
        path: The file, which need not be there.
        say: Takes a line if it is something else, and stays.
    """
    if not os.path.lexists(path):
        return 0
    if not is_as_recorded(path, Path(record_path(path))):
        say(f"{path} stays: it is not as the job of this workflow wrote it")
        return 0
    with claims.claimed(path, wait=False):
        size = path.stat().st_size
        path.unlink()
    return size
