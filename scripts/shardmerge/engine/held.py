"""Sources of a tensor that stay in memory between its passes and its result: each is read once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from shardmerge.algebra.leaves import FileLeaf
from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.locations import apart
from shardmerge.engine.memory import held_leaf_bytes
from shardmerge.engine.tile_buffers import AHEAD, ReadFiles, TileBuffers, read_spans


class StayingLeaf:
    """A leaf whose elements stay where they are read to, from the first on.

    Args:
        location: Where it lies in files.
        files: That have it.
        memory: As many bytes as they have, at least.
        address: Where that begins.
    """

    def __init__(self, location: Any, files: ReadFiles, memory: memoryview, address: int) -> None:
        self.dtype, self.address = location.dtype, address
        self._location, self._files, self._memory = apart(location), files, memory
        self._size = DTYPES[location.dtype].size
        self._known, self._lock = 0, threading.Lock()

    def need(self, end: int) -> None:
        """Read the elements before one that are not there yet, for any thread."""
        if end <= self._known:
            return
        with self._lock:
            if (rest := end - self._known) > 0:
                place = self._memory[self._known * self._size :]
                self._files.read_elements(self._location, self._known, rest, place)
                self._known = end

    def read(self, spans: Sequence[tuple[int, int]], into: memoryview) -> None:
        """Fill the beginning of a buffer with spans of elements, one after the other.

        Those that are not there yet stay away.
        """
        if max((first + count for first, count in spans), default=0) > self._known:
            with self._lock:
                read_spans(self._files, self._location, spans, self._size, into)
            return
        place = 0
        for first, count in spans:
            begin, length = first * self._size, count * self._size
            into[place : place + length] = self._memory[begin : begin + length]
            place += length


class HeldSources:
    """Files of which the leaves of one tensor are held.

    Args:
        files: That have all leaves.
        leaves: Those that are held, each of as many elements.
        count: That number.
        memory: ``memory.held_leaf_bytes`` of all of them.
        address: Where that begins.
    """

    def __init__(
        self,
        files: Any,
        leaves: Sequence[FileLeaf],
        count: int,
        memory: memoryview,
        address: int,
    ) -> None:
        self._files, self.stored, self.beside = files, files.stored, files.beside
        self._leaves: dict[FileLeaf, StayingLeaf] = {}
        begin = 0
        for leaf in leaves:
            own = memory[begin:], address + begin
            self._leaves[leaf] = StayingLeaf(files.locate(leaf), files, *own)
            begin += held_leaf_bytes(leaf, count)

    def locate(self, leaf: FileLeaf) -> Any:
        """Return where a leaf lies."""
        return self._leaves.get(leaf) or self._files.locate(leaf)

    def read_elements(self, leaf: Any, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of what was located."""
        if not isinstance(leaf, StayingLeaf):
            self._files.read_elements(leaf, first, count, into)
        else:
            leaf.read([(first, count)], into)

    def read_spans(self, leaf: Any, spans: Sequence[tuple[int, int]], into: memoryview) -> bool:
        """Fill the beginning of a buffer with spans of elements, one after the other.

        Returns:
            Whether that is done, as ``InputFiles.read_spans`` does.
        """
        if not isinstance(leaf, StayingLeaf):
            return self._files.read_spans(leaf, spans, into)
        leaf.read(spans, into)
        return True

    def places(self, first: int, count: int) -> list[int]:
        """Return the addresses of elements that follow each other, of all leaves."""
        for leaf in self._leaves.values():
            leaf.need(first + count)
        return [one.address + first * DTYPES[one.dtype].size for one in self._leaves.values()]


class HeldBuffers(TileBuffers):
    """Leaves that are held, as if they had been read to buffers."""

    #: The elements before this one are there.
    _there = 0

    @property
    def starts(self) -> list[int]:
        """Addresses of the leaves."""
        return [leaf.address for leaf in self._locations]

    def offset(self, first: int, count: int) -> int:
        """Return how far in the leaves elements that follow each other begin."""
        if first + count > self._there:
            end = first + max(count, min(self.until - first, self.most))
            for leaf in self._locations:
                leaf.need(end)
            self._there = end
        return first


def tile_buffers(
    locations: Sequence[Any],
    files: ReadFiles,
    sizes: Sequence[int],
    most: int = AHEAD,
    **buffers: Any,
) -> TileBuffers:
    """Return what leaves are read to: where they are held, or else buffers as asked for."""
    if locations and all(isinstance(one, StayingLeaf) for one in locations):
        return HeldBuffers(locations, files, sizes, most)
    return TileBuffers(locations, files, sizes, most, **buffers)
