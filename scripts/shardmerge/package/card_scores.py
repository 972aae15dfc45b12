"""Which benchmark results a model's card has: a card that is written anew keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, sha256_of


def receipt(build: str, results: Iterable[str]) -> dict[str, Any]:
    """Return, as JSON-able data, what the card of a build was given.

    Args:
        build: The build's digest.
        results: Files of benchmark results.
    """
    return {"build": build, "results": [[path, sha256_of(path)] for path in results]}


def added_results(path: Path, build: str) -> list[str]:
    """Return the files of results that a build's card had, none if they are not this build's.

    Args:
        path: Where ``receipt`` was written, if it was.
        build: The digest of the build as it is now.
    """
    try:
        added = load_json(path)
        if added.get("build") != build:
            return []
        results = [(str(path), sha256) for path, sha256 in added["results"]]
        same = all(sha256_of(path) == sha256 for path, sha256 in results)
    except (UserError, KeyError, TypeError, ValueError):  # never added, damaged, or gone
        return []
    return [path for path, _ in results] if same else []
