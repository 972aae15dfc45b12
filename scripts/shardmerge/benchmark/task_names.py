"""Names of lm-eval's tasks, groups and tags: which are there, run code, or need the Hub.

lm-eval itself is not asked: importing it takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import load_json, write_json
from shardmerge.benchmark.task_files import TaskFile, names_of, reached, read_files, unsafe_names

#: Grows when more is found in the same files.
_VERSION = 2
_WHERE = "configuration: benchmark.tasks"


@dataclass(frozen=True)
class _Known:
    """What lm-eval has: all names, and those of tasks that run what a model writes."""

    names: frozenset[str]
    unsafe: frozenset[str]


def lm_eval_version() -> str | None:
    """Return the version of lm-eval that is installed, or None."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return None


def check_tasks(
    names: Sequence[str], folders: Iterable[str], cache: Path, *, allow_code: bool = False
) -> None:
    """Make sure that tasks are there and may run, before anything is done for them.

    Nothing is said of lm-eval's own where it is not installed, as its jobs then have an
    environment of theirs. They ask again.

    Args:
        names: Tasks, groups or tags.
        folders: Of task files besides lm-eval's own.
        cache: Folder that keeps lm-eval's names.
        allow_code: Whether tasks may run the code that a model writes.

    Raises:
        UserError: If a folder is missing, a name unknown (with the nearest name), or a task runs
            code that may not run.
    """
    files = _local(folders)
    local = names_of(files)
    _, outside = reached(names, files)
    known = _lm_eval_names(set(names) - local, cache) if outside else None
    for name in names if known else ():
        if name not in local | known.names:
            raise UserError(
                f"there is no task {name!r}, neither in `include_path` nor in lm-eval",
                _WHERE,
                did_you_mean(name, sorted(local | known.names)),
            )
    unsafe = unsafe_names(files, known.unsafe if known else ())
    for name in names if not allow_code else ():
        if name in unsafe:
            raise UserError(
                f"{name!r} runs code that the model writes",
                _WHERE,
                "It would run as you, without a sandbox. If it may, write "
                "`allow_code_execution: true` under `benchmark`.",
            )


def needs_hub(names: Sequence[str], folders: Iterable[str]) -> bool:
    """Return whether the data set of a task may be on the Hub.

    Args:
        names: Tasks, groups or tags.
        folders: Of task files besides lm-eval's own, whose data sets are nearly all there.

    Raises:
        UserError: If a folder is missing.
    """
    found, outside = reached(names, _local(folders))
    return bool(outside) or any(file.remote for file in found)


def names_in(folder: Path) -> set[str]:
    """Return the names of tasks, groups and tags in a folder's task files."""
    return names_of(read_files(folder))


def _local(folders: Iterable[str]) -> list[TaskFile]:
    files: list[TaskFile] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError("is not a folder of tasks", str(folder))
        files += read_files(folder)
    return files


def _lm_eval_names(wanted: Iterable[str], cache: Path) -> _Known | None:
    """Return what lm-eval has, or None if it is not installed."""
    version, package = lm_eval_version(), importlib.util.find_spec("lm_eval")
    if version is None or package is None or not package.submodule_search_locations:
        return None
    kept = cache / f"{digest([_VERSION, version])}.json"
    with contextlib.suppress(UserError):
        known = load_json(kept)
        names, unsafe = known.get("names"), known.get("unsafe")
        if isinstance(names, list) and isinstance(unsafe, list) and set(wanted) <= set(names):
            return _Known(frozenset(names), frozenset(unsafe))
    files = read_files(Path(package.submodule_search_locations[0]) / "tasks")
    names, unsafe = sorted(names_of(files)), sorted(unsafe_names(files))
    with contextlib.suppress(UserError, OSError):  # it only saves time
        write_json(kept, {"names": names, "unsafe": unsafe})
    return _Known(frozenset(names), frozenset(unsafe))
