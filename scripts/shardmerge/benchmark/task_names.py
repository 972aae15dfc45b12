"""Names of lm-eval's tasks, groups and tags, read from its files: importing it takes seconds.

Only what a name may stand for is looked for, so a file is searched, not parsed. Where a name is
written in a way that is not foreseen it would be refused wrongly; a test compares all names with
those that lm-eval itself finds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import load_json, write_json

#: Grows when more names are found in the same files.
_VERSION = 1
#: Characters of a file that are searched.
_MOST = 1 << 20
_KEY = r"""^["']?(?:{})["']?[ \t]*:[ \t]*"""
_NAME = r"""(?:["']([^"'\n]+)["']|([^\s"'\[\]{}#&*!|>][^"'#\n]*?))[ \t]*(?:#.*)?$"""
_NAMED = re.compile(_KEY.format("task|group") + _NAME, re.MULTILINE)
_LISTED = re.compile(_KEY.format("tag") + r"(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
_INCLUDED = re.compile(_KEY.format("include") + r"(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
_COMMENT = re.compile(r"(?<!\S)#.*")
_WORD = re.compile(r"""(?<![^\s,"'\[])[^\s,"'\[\]#-][^\s,"'\[\]#]*""")


def lm_eval_version() -> str | None:
    """Return the version of lm-eval that is installed, or None."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return None


def check_tasks(names: Sequence[str], folders: Iterable[str], cache: Path) -> None:
    """Make sure that tasks are there, before anything is done for them.

    Nothing is said where lm-eval is not installed, as its jobs then have an environment of theirs.

    Args:
        names: Tasks, groups or tags.
        folders: Of task files besides lm-eval's own.
        cache: Folder that keeps lm-eval's names.

    Raises:
        UserError: If a folder is missing, or a name unknown; with the nearest name.
    """
    local: set[str] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError("is not a folder of tasks", str(folder))
        local |= names_in(folder)
    wanted = [name for name in names if name not in local]
    known = _lm_eval_names(wanted, cache) if wanted else None
    for name in wanted if known is not None else ():
        if name not in known:
            raise UserError(
                f"there is no task {name!r}, neither in `include_path` nor in lm-eval",
                "configuration: benchmark.tasks",
                did_you_mean(name, sorted(local | known)),
            )


def names_in(folder: Path) -> set[str]:
    """Return the names of tasks, groups and tags in a folder's task files."""
    found: set[str] = set()
    todo = [Path(top, name) for top, _, names in os.walk(folder) for name in sorted(names)]
    todo = [path for path in todo if path.suffix == ".yaml"]
    seen = set(todo)
    while todo:
        path = todo.pop()
        text = _text(path)
        found.update(quoted or plain for quoted, plain in _NAMED.findall(text))
        found.update(_words(_LISTED, text))
        included = {path.parent / name for name in _words(_INCLUDED, text)}
        todo += sorted(included - seen)
        seen |= included
    return found


def _lm_eval_names(wanted: Iterable[str], cache: Path) -> set[str] | None:
    """Return lm-eval's names, or None if it is not installed."""
    version, package = lm_eval_version(), importlib.util.find_spec("lm_eval")
    if version is None or package is None or not package.submodule_search_locations:
        return None
    kept = cache / f"{digest([_VERSION, version])}.json"
    with contextlib.suppress(UserError):
        known = load_json(kept).get("names")
        if isinstance(known, list) and set(wanted) <= set(known):
            return set(known)
    found = names_in(Path(package.submodule_search_locations[0]) / "tasks")
    with contextlib.suppress(UserError, OSError):  # it only saves time
        write_json(kept, {"names": sorted(found)})
    return found


def _words(key: re.Pattern[str], text: str) -> list[str]:
    """Return the names, one or a list of them, that a key's value is."""
    values = (_COMMENT.sub("", value) for value in key.findall(text))
    return [word for value in values for word in _WORD.findall(value)]


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST)
    except (OSError, ValueError):
        return ""
