"""Buffers that elements of leaves are read into, several tiles at once where they are in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf
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
        # of the last elements whole vectors can be read
        self._buffers = [np.zeros((most + LANES) * size, np.uint8) for size in sizes]
        self.starts = [buffer.ctypes.data for buffer in self._buffers]
        self._begin = self._end = self.until = 0

    def read(self, first: int, count: int) -> None:
        """Have elements that follow each other at the buffers' beginning."""
        if first != self._begin or first + count > self._end:
            self._read(first, count)

    def places(self, first: int, count: int) -> list[int]:
        """Return the addresses of elements that follow each other; they are read if need be."""
        if not self._begin <= first <= first + count <= self._end:
            self._read(first, max(count, min(self.until - first, self._most)))
        pairs = zip(self.starts, self._sizes, strict=True)
        return [place + (first - self._begin) * size for place, size in pairs]

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
