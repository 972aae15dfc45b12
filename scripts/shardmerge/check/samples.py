"""Elements of tensors in safetensors files, read run by run: how checks read, not merges."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shardmerge.algebra.samples import Runs
from shardmerge.base.files import fill_from, fill_ranges
from shardmerge.base.safetensors import Header, TensorEntry, read_header
from shardmerge.check.float_formats import stored_dtype


class TensorFile(contextlib.AbstractContextManager):
    """An open safetensors file.

    Args:
        path: The file.

    Raises:
        UserError: If it cannot be read or has a broken header.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.header: Header = read_header(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._fd).st_size

    def read(self, entry: TensorEntry, runs: Runs) -> np.ndarray:
        """Return elements of a tensor as they are stored, one run after the other.

        Raises:
            UserError: If the file cannot be read, or ends too early.
        """
        ranges = ranges_of(entry, runs)
        made = np.empty(sum(length for _, length in ranges), np.uint8)
        self.fill_ranges(ranges, memoryview(made))
        return made.view(stored_dtype(entry.dtype))

    def fill_ranges(self, ranges: Sequence[tuple[int, int]], into: memoryview) -> None:
        """Fill the beginning of a buffer with ranges of the file, (offset, bytes) each.

        Raises:
            UserError: If the file cannot be read, or ends too early.
        """
        fill_ranges(self._fd, self.path, ranges, into)

    def fill(self, offset: int, into: memoryview) -> None:
        """Fill a buffer with the file's bytes from an offset on.

        Raises:
            UserError: If the file cannot be read, or ends too early.
        """
        fill_from(self._fd, self.path, offset, into)


def ranges_of(entry: TensorEntry, runs: Runs) -> list[tuple[int, int]]:
    """Return where elements of a tensor lie in its file, as (offset, bytes)."""
    size = stored_dtype(entry.dtype).itemsize
    return [(entry.begin + first * size, count * size) for first, count in runs]
