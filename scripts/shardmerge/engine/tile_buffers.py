"""Buffers that elements of leaves are read into, several tiles at once where they are in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf
from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.assembly import LANES
from shardmerge.methods.contract import BLOCK

#: Elements that are read at once, at most: the kernel and Python take less for each then.
_AHEAD = 4 * BLOCK


class ReadFiles(Protocol):
    """Open files of which elements of leaves are read."""

    stored: Collection[ex.Delta]

    def locate(self, leaf: FileLeaf) -> Any:
        """Return where a leaf lies."""

    def read_elements(self, leaf: Any, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of what was located."""


class TileBuffers:
    """The buffers of some leaves.

    Args:
        locations: Of the leaves.
        files: That are read.
        sizes: Bytes of an element of each leaf.
        most: Elements that are read at once, at most.

    Attributes:
        starts: Addresses of the buffers.
        until: Up to which element all will be asked for in order.
    """

    def __init__(
        self,
        locations: Sequence[Any],
        files: ReadFiles,
        sizes: Sequence[int],
        most: int = _AHEAD,
    ) -> None:
        self._locations, self._files, self._sizes, self._most = locations, files, sizes, most
        # of the last elements whole vectors can be read, whatever follows them
        self._buffers = [np.empty((most + LANES) * size, np.uint8) for size in sizes]
        self.starts = [buffer.ctypes.data for buffer in self._buffers]
        self._begin = self._end = self.until = 0

    def of(self, files: ReadFiles) -> TileBuffers:
        """Return buffers of the same leaves, whose elements another view of the files tells."""
        return TileBuffers(self._locations, files, self._sizes, self._most)

    def offset(self, first: int, count: int) -> int:
        """Return how far in the buffers elements that follow each other begin.

        They are read if need be.
        """
        if not self._begin <= first <= first + count <= self._end:
            self._read(first, max(count, min(self.until - first, self._most)))
        return first - self._begin

    def places(self, first: int, count: int) -> list[int]:
        """Return the addresses of elements that follow each other; they are read if need be."""
        offset = self.offset(first, count)
        pairs = zip(self.starts, self._sizes, strict=True)
        return [place + offset * size for place, size in pairs]

    def gathered(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Return the addresses of spans of elements, which are read one after the other."""
        self._begin = self._end = 0
        for location, buffer, size in zip(self._locations, self._buffers, self._sizes, strict=True):
            place, view = 0, memoryview(buffer)
            for first, count in spans:
                self._files.read_elements(location, first, count, view[place:])
                place += count * size
        return self.starts

    def _read(self, first: int, count: int) -> None:
        self._begin = self._end = first
        for location, buffer in zip(self._locations, self._buffers, strict=True):
            self._files.read_elements(location, first, count, memoryview(buffer))
        self._end = first + count


class ChosenRows:
    """Some rows of files' tensors, as if they followed each other.

    Args:
        files: That have all rows.
        rows: Their numbers.
        length: Elements of each.
    """

    def __init__(self, files: ReadFiles, rows: Sequence[int], length: int) -> None:
        self._files, self._rows, self._length = files, rows, length
        self.stored = files.stored

    def locate(self, leaf: FileLeaf) -> Any:
        """Return where a leaf lies."""
        return self._files.locate(leaf)

    def read_elements(self, leaf: Any, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of whole rows."""
        step = self._length * DTYPES[leaf.dtype].size
        for k, row in enumerate(self._rows[first // self._length :][: count // self._length]):
            part = into[k * step : (k + 1) * step]
            self._files.read_elements(leaf, row * self._length, self._length, part)
