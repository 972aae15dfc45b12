"""Buffers that elements of leaves are read into, several tiles at once where they are in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf
from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.assembly import LANES
from shardmerge.methods.contract import BLOCK

#: Elements that are read at once, at most: the kernel and Python take less for each then.
AHEAD = 4 * BLOCK


class ReadFiles(Protocol):
    """Open files of which elements of leaves are read.

    Attributes:
        stored: Task vectors that lie in files.
        beside: A folder where there is room for what is too large for memory.
    """

    stored: Collection[ex.Delta]
    beside: Path | None

    def locate(self, leaf: FileLeaf) -> Any:
        """Return where a leaf lies."""

    def read_elements(self, leaf: Any, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of what was located."""


@dataclass
class _Room:
    """Buffers, and the mark of who read into them last."""

    buffers: list[np.ndarray]
    last: object = None


class TileBuffers:
    """The buffers of some leaves.

    Args:
        locations: Of the leaves.
        files: That are read.
        sizes: Bytes of an element of each leaf.
        most: Elements that are read at once, at most.
        behind: Elements before those that are read next, at most, that stay if they are there.
        room: Buffers of the same size whose pages are used again; who read into them last has what
            lies there.

    Attributes:
        most: As it is given.
        until: Up to which element all will be asked for in order.
    """

    def __init__(
        self,
        locations: Sequence[Any],
        files: ReadFiles,
        sizes: Sequence[int],
        most: int = AHEAD,
        behind: int = 0,
        room: TileBuffers | None = None,
    ) -> None:
        self._locations, self._files, self._sizes, self.most = locations, files, sizes, most
        self._behind = behind
        # of the last elements whole vectors can be read, whatever follows them
        self._lengths = [(behind + most + LANES) * size for size in sizes]
        self._shared = room if room and room._lengths == self._lengths else None
        self._mark = object()
        self._begin = self._end = self.until = 0

    @property
    def starts(self) -> list[int]:
        """Addresses of what elements are read to, from which their places are told."""
        return self._addresses

    @cached_property
    def _room(self) -> _Room:
        shared, self._shared = self._shared, None
        return shared._room if shared else _Room([np.empty(one, np.uint8) for one in self._lengths])

    @property
    def _buffers(self) -> list[np.ndarray]:
        return self._room.buffers

    @cached_property
    def _addresses(self) -> list[int]:
        return [buffer.ctypes.data for buffer in self._buffers]

    def of(self, files: ReadFiles) -> TileBuffers:
        """Return buffers of the same leaves, whose elements another view of the files tells."""
        return TileBuffers(self._locations, files, self._sizes, self.most, self._behind)

    def offset(self, first: int, count: int) -> int:
        """Return how far in the buffers elements that follow each other begin.

        They are read if need be.
        """
        self._take()
        if not self._begin <= first <= first + count <= self._end:
            self._read(first, max(count, min(self.until - first, self.most)))
        return first - self._begin

    def places(self, first: int, count: int) -> list[int]:
        """Return the addresses of elements that follow each other; they are read if need be."""
        offset = self.offset(first, count)
        pairs = zip(self.starts, self._sizes, strict=True)
        return [place + offset * size for place, size in pairs]

    def gathered(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Return the addresses of spans of elements, which are read one after the other."""
        self._take()
        self._begin = self._end = 0
        for location, buffer, size in zip(self._locations, self._buffers, self._sizes, strict=True):
            read_spans(self._files, location, spans, size, memoryview(buffer))
        return self._addresses

    def _take(self) -> None:
        """Know nothing of the buffers if another reads into them too, and did so last."""
        if self._room.last is not self._mark:
            self._room.last, self._begin, self._end = self._mark, 0, 0

    def _read(self, first: int, count: int) -> None:
        end = first + count
        begin = self._keep(first)
        for location, buffer, size in zip(self._locations, self._buffers, self._sizes, strict=True):
            place, rest = (self._end - begin) * size, end - self._end
            self._files.read_elements(location, self._end, rest, memoryview(buffer)[place:])
        self._begin, self._end = begin, end

    def _keep(self, first: int) -> int:
        """Bring to the front what is there and stays; return where that begins."""
        begin = max(self._begin, first - self._behind)
        if not (self._behind and begin <= first <= self._end):
            self._begin = self._end = first
            return first
        for buffer, size in zip(self._buffers, self._sizes, strict=True):
            place, kept = (begin - self._begin) * size, (self._end - begin) * size
            buffer[:kept] = buffer[place : place + kept]
        self._begin = begin
        return begin


class ChosenRows:
    """Some rows of files' tensors, as if they followed each other.

    Args:
        files: That have all rows.
        rows: Their numbers.
        length: Elements of each.
    """

    def __init__(self, files: ReadFiles, rows: Sequence[int], length: int) -> None:
        self._files, self._rows, self._length = files, rows, length
        self.stored, self.beside = files.stored, files.beside

    def locate(self, leaf: FileLeaf) -> Any:
        """Return where a leaf lies."""
        return self._files.locate(leaf)

    def read_elements(self, leaf: Any, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of whole rows."""
        rows = self._rows[first // self._length :][: count // self._length]
        spans = [(row * self._length, self._length) for row in rows]
        read_spans(self._files, leaf, spans, DTYPES[leaf.dtype].size, into)


def read_spans(
    files: ReadFiles, leaf: Any, spans: Sequence[tuple[int, int]], size: int, into: memoryview
) -> None:
    """Fill the beginning of a buffer with spans of a leaf's elements, one after the other.

    Args:
        files: That have the leaf; those with ``read_spans`` read several at once where they can.
        leaf: What was located.
        spans: The first element of each, and their number.
        size: Bytes of an element.
        into: The buffer.
    """
    together = getattr(files, "read_spans", None)
    if together and together(leaf, spans, into):
        return
    place = 0
    for first, count in spans:
        files.read_elements(leaf, first, count, into[place:])
        place += count * size
