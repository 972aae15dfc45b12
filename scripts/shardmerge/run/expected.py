"""What the results of a search must be of: a run notes it, and the next step compares.

A result tells its identity: the digest of the model, the task and all that decides the numbers. A
file of another identity, of other sources or another lm-eval, is not of this search.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, write_json

#: Of each model's label and task the identity of the result.
Noted = Mapping[str, Mapping[str, str]]


def expected_path(results: str, search: str) -> Path:
    """Return the path of what is noted of a search."""
    return Path(results, "sweeps", search, "search", "expected.json")


def note_expected(path: Path, identities: Noted, *, dry: bool) -> None:
    """Note what the results of a search's trials must be of.

    Args:
        path: From ``expected_path``.
        identities: Of the trials, as they are planned now.
        dry: Whether nothing is written.

    Raises:
        UserError: If what was noted before differs, so that old and new scores do not compare.
    """
    known = load_expected(path)
    for label, tasks in identities.items():
        noted = known.get(label, {})
        if changed := [t for t in tasks if noted.get(t, tasks[t]) != tasks[t]]:
            raise UserError(
                f"{changed[0]} of {label} would be measured otherwise than when the search began: "
                "sources, options or versions have changed",
                str(path.parent),
                "Take back what was changed, or give the sweep another `name`.",
            )
    merged = dict(known)
    for label, tasks in identities.items():
        merged[label] = {**known.get(label, {}), **tasks}
    if not dry and merged != known:
        write_json(path, merged)


def load_expected(path: Path) -> Noted:
    """Return what was noted, nothing if it is not there.

    Raises:
        UserError: If it is damaged.
    """
    if not path.is_file():
        return {}
    found = load_json(path)
    if not all(isinstance(tasks, dict) for tasks in found.values()):
        raise UserError("is damaged", str(path), "Delete it; the next run writes it anew.")
    return found


def is_expected(result: str | os.PathLike[str], noted: Any) -> bool:
    """Return whether a result is there and has the identity that was noted; None is none."""
    return (
        noted is not None and os.path.isfile(result) and load_json(result).get("identity") == noted
    )
