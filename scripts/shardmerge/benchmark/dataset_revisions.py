"""Data sets of the Hub that tasks read, and the commits that they are at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.digest import is_hex

_COMMIT = 40


def revisions_of(task: Mapping[str, Any]) -> dict[str, str]:
    """Return the commit of each data set of the Hub that a loaded task or group reads.

    Args:
        task: From ``harness.load_task``.
    """
    found = {}
    for part in task["tasks"].values():
        path = getattr(part, "DATASET_PATH", None)
        if path and (commit := next(_commits(getattr(part, "dataset", None)), None)):
            found[str(path)] = commit
    return dict(sorted(found.items()))


def datasets_json(revisions: Mapping[str, Mapping[str, str]], version: str) -> dict[str, Any]:
    """Return what ``prefetch`` notes: each data set with its commit and the tasks that read it.

    Args:
        revisions: By task, as ``revisions_of`` has them.
        version: Of lm-eval.
    """
    pairs = sorted({pair for found in revisions.values() for pair in found.items()})
    rows = [
        {
            "path": path,
            "revision": commit,
            "tasks": sorted(task for task, found in revisions.items() if found.get(path) == commit),
        }
        for path, commit in pairs
    ]
    return {"lm_eval_version": version, "datasets": rows}


def _commits(splits: Any) -> Iterator[str]:
    """Yield the commits in the names of cached folders: the library has one for each commit."""
    for split in splits.values() if isinstance(splits, Mapping) else ():
        for file in getattr(split, "cache_files", None) or ():
            name = Path(file["filename"]).parent.name
            if is_hex(name, _COMMIT):
                yield name
