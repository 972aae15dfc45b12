"""The lists of files that a job reads: in a file, as they grow with the model.

A command line has no room for the records of a large model, and names of files are read by no
shell that never sees them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from shardmerge.base.claims import part_path
from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.plan.files import CACHE


def keep_lists(lists: Mapping[str, Iterable[str]]) -> str:
    """Write lists of files where a job finds them.

    Args:
        lists: Files by the option that takes them, without its hyphens.

    Returns:
        The path of the file, for ``--inputs``.
    """
    path, text = list_path(lists), canonical_json(_plain(lists))
    if not (path.is_file() and path.read_bytes() == text.encode()):
        _write(path, text)
    return str(path)


def list_path(lists: Mapping[str, Iterable[str]]) -> Path:
    """Return where ``keep_lists`` writes lists: a place of their own for each content."""
    return CACHE / "inputs" / f"{digest(_plain(lists))}.json"


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments of this process; ``--inputs`` gives those that are lists of files.

    Args:
        parser: Of the script. It gets the option ``--inputs``.

    Raises:
        UserError: If the file of lists is none.
    """
    parser.add_argument("--inputs", metavar="FILE", help="JSON: files of the options above")
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--inputs")
    given, words = own.parse_known_args()
    for option, files in load_json(given.inputs).items() if given.inputs else ():
        if not (isinstance(files, list) and all(isinstance(file, str) for file in files)):
            raise UserError(f"{option!r} is no list of files", given.inputs)
        words += [f"--{option}", *map(_no_option, files)] if files else []
    return parser.parse_args(words)


def _write(path: Path, text: str) -> None:
    """Write a file whole, without waiting for the disk: a damaged one is written again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _plain(lists: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    return {option: list(files) for option, files in lists.items()}


def _no_option(file: str) -> str:
    return f"./{file}" if file.startswith("-") else file
