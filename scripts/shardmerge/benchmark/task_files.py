"""lm-eval's task files, searched for what is needed before lm-eval is there.

Importing lm-eval takes seconds. Only what a name may stand for is looked for, so a file is
searched, not parsed. Where a name is written in a way that is not foreseen it would be refused
wrongly; a test compares all names with those that lm-eval itself finds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Characters of a file that are searched.
_MOST = 1 << 20
_KEY = r"""^["']?(?:{})["']?[ \t]*:[ \t]*"""
_NAME = r"""(?:["']([^"'\n]+)["']|([^\s"'\[\]{}#&*!|>][^"'#\n]*?))[ \t]*(?:#.*)?$"""
_LIST = r"(.*(?:\n[ \t]*-.*)*)"
_NAMED = re.compile(_KEY.format("task|group") + _NAME, re.MULTILINE)
_LISTED = re.compile(_KEY.format("tag") + _LIST, re.MULTILINE)
_INCLUDED = re.compile(_KEY.format("include") + _LIST, re.MULTILINE)
_GROUP = re.compile(_KEY.format("group"), re.MULTILINE)
_PARTS = re.compile(_KEY.format("task") + r"(.*(?:\n(?:[ \t]+|-).*)*)", re.MULTILINE)
_UNSAFE = re.compile(_KEY.format("unsafe_code") + r"(\S+)", re.MULTILINE)
_DATASET = re.compile(_KEY.format("dataset_path") + r"[\"']?([^\s\"'#]+)", re.MULTILINE)
_COMMENT = re.compile(r"(?<!\S)#.*")
_WORD = re.compile(r"""(?<![^\s,"'\[])[^\s,"'\[\]#-][^\s,"'\[\]#]*""")
#: What makes a data set of files that are there already.
_LOCAL = {"json", "csv", "parquet", "text", "arrow", "pandas", "null", "~"}


@dataclass(frozen=True)
class TaskFile:
    """What a task file says, with what it includes.

    Args:
        names: Tasks and groups.
        tags: Tags that its task has.
        parts: Of a group, the names it may consist of, among other words.
        unsafe: Whether its task runs what a model writes; None if it does not say.
        remote: Whether its data set is on the Hub; None if it does not say.
    """

    names: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    unsafe: bool | None = None
    remote: bool | None = None


def read_files(folder: Path) -> list[TaskFile]:
    """Return what the task files of a folder say, those of its folders too."""
    paths = [Path(top, name) for top, _, names in os.walk(folder) for name in sorted(names)]
    texts: dict[Path, str] = {}
    return [_whole(path, texts, ()) for path in paths if path.suffix == ".yaml"]


def names_of(files: Iterable[TaskFile]) -> set[str]:
    """Return the names of tasks, groups and tags in task files."""
    return {name for file in files for name in file.names | file.tags}


def unsafe_names(files: Iterable[TaskFile], others: Iterable[str] = ()) -> set[str]:
    """Return the tasks that run code of a model's, and the groups and tags that have such a one.

    Args:
        files: That they are in.
        others: Unsafe tasks in other files, which a group may name.
    """
    files = list(files)
    found = set(others) - names_of(files)
    found |= names_of(file for file in files if file.unsafe)
    groups = [file for file in files if file.parts]
    while more := names_of(file for file in groups if file.parts & found) - found:
        found |= more
    return found


def reached(names: Iterable[str], files: Iterable[TaskFile]) -> tuple[list[TaskFile], set[str]]:
    """Return the files that tasks are in, parts of groups too, and the words that are in none."""
    by_name: dict[str, list[TaskFile]] = {}
    for file in files:
        for name in file.names | file.tags:
            by_name.setdefault(name, []).append(file)
    todo, seen, found = list(names), set(), []
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            found += by_name.get(name, ())
            todo += [part for file in by_name.get(name, ()) for part in file.parts]
    return found, seen - by_name.keys()


def _whole(path: Path, texts: dict[Path, str], above: tuple[Path, ...]) -> TaskFile:
    """Return what a file says; what it includes holds where it says nothing."""
    if path not in texts:
        texts[path] = _text(path)
    own = _read(texts[path])
    for name in _words(_INCLUDED, texts[path]):
        if (part := Path(os.path.normpath(path.parent / name))) not in above:
            own = _over(own, _whole(part, texts, (*above, path)))
    return own


def _read(text: str) -> TaskFile:
    unsafe, path = _UNSAFE.search(text), _DATASET.search(text)
    parts = _words(_PARTS, text) if _GROUP.search(text) else ()
    return TaskFile(
        frozenset(quoted or plain for quoted, plain in _NAMED.findall(text)),
        frozenset(_words(_LISTED, text)),
        frozenset(word for word in parts if not word.endswith(":")),
        unsafe[1].lower() not in ("false", "no", "off") if unsafe else None,
        path[1] not in _LOCAL if path else None,
    )


def _over(own: TaskFile, below: TaskFile) -> TaskFile:
    return TaskFile(
        own.names | below.names,
        own.tags | below.tags,
        own.parts | below.parts,
        below.unsafe if own.unsafe is None else own.unsafe,
        below.remote if own.remote is None else own.remote,
    )


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
