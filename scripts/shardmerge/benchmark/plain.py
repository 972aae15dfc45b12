"""Values of other libraries as JSON that is the same on every machine and in every run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Return a value as JSON-able data that does not depend on hash seeds or memory addresses.

    Sets are sorted, functions become their names, numbers of numpy Python's, and numbers that
    JSON does not have (NaN, infinities) text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Callable):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, (date, Path)):
        return str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Scrubber:
    """Takes this machine's folders, and addresses in memory, out of all text in a value.

    Args:
        folders: Folders that keep their names as given, relative if they were.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        names = {str(Path.cwd()): ".", str(Path.home()): "~"}
        for folder in folders:
            names[str(folder.resolve())] = folder.name if folder.is_absolute() else str(folder)
        longest_first = sorted(names.items(), key=lambda item: (-len(item[0]), item))
        self._names = [(folder, name) for folder, name in longest_first if folder != "/"]

    def __call__(self, value: Any) -> Any:
        """Return the value with each of the folders replaced by its short name."""
        if isinstance(value, str):
            for folder, name in self._names:
                value = value.replace(folder, name)
            return _ADDRESS.sub("", value)
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return [self(item) for item in value] if isinstance(value, list) else value
