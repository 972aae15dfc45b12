"""Where the elements of a chunk are computed: in its window, or beside it where one lies across."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from shardmerge.engine.layout import Chunk

#: Bytes that can be sliced: a memoryview, or a tensor of uint8.
Bytes = TypeVar("Bytes")


class EdgeBuffer(Generic[Bytes]):
    """Room for chunks whose first or last element lies across their window's edge.

    Args:
        allocate: Returns that many bytes.
    """

    def __init__(self, allocate: Callable[[int], Bytes]) -> None:
        self._allocate = allocate
        self._spare = allocate(0)

    @contextlib.contextmanager
    def elements(self, chunk: Chunk, output: Bytes) -> Iterator[Bytes]:
        """Give the bytes that a chunk's elements go to; bring them to its window at the end.

        Args:
            chunk: The chunk.
            output: The window's bytes.
        """
        size = chunk.count * chunk.itemsize
        length = chunk.end - chunk.begin
        if length == size and chunk.begin % chunk.itemsize == 0:
            yield output[chunk.begin : chunk.end]
            return
        if len(self._spare) < size:
            self._spare = self._allocate(size)
        yield self._spare[:size]
        output[chunk.begin : chunk.end] = self._spare[chunk.skip : chunk.skip + length]
