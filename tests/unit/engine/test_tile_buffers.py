"""Elements are read several tiles at once where they are asked for in order."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from shardmerge.engine.halves import halved_sum, halved_together
from shardmerge.engine.tile_buffers import ChosenRows, TileBuffers
from shardmerge.methods.contract import BLOCK

COUNT = 6 * BLOCK + 1000


class Files:
    """One leaf of numbers, each its own index."""

    stored = ()

    def __init__(self) -> None:
        self.values = np.arange(COUNT, dtype=np.uint32)
        self.reads: list[tuple[int, int]] = []

    def read_elements(self, leaf: object, first: int, count: int, into: memoryview) -> None:
        self.reads.append((first, count))
        np.frombuffer(into, np.uint32, count)[:] = self.values[first : first + count]


def found(buffers: TileBuffers, first: int, count: int) -> list[int]:
    """Return the first and the last of some elements."""
    (place,) = buffers.places(first, count)
    ends = (place, place + 4 * (count - 1))
    return [ctypes.c_uint32.from_address(one).value for one in ends]


def test_tiles_in_order_are_read_together() -> None:
    files = Files()
    buffers = TileBuffers([None], files, [4])
    buffers.until = COUNT
    for first in range(0, COUNT, BLOCK):
        count = min(BLOCK, COUNT - first)
        assert found(buffers, first, count) == [first, first + count - 1]
    assert files.reads == [(0, 4 * BLOCK), (4 * BLOCK, 2 * BLOCK + 1000)]


def test_no_more_is_read_of_single_tiles() -> None:
    files = Files()
    buffers = TileBuffers([None], files, [4])
    for first in (3 * BLOCK, 0, 5 * BLOCK):
        assert found(buffers, first, 100) == [first, first + 99]
    assert sum(count for _, count in files.reads) == 300


def test_chosen_rows_follow_each_other() -> None:
    length = 1024
    chosen = ChosenRows(Files(), [1, 5, 600, 3], length)
    buffers = TileBuffers([SimpleNamespace(dtype="U32")], Files(), [4]).of(chosen)
    assert buffers.offset(length, 3 * length) == 0
    assert found(buffers, 2 * length, length) == [600 * length, 601 * length - 1]
    assert found(buffers, 3 * length, 32) == [3 * length, 3 * length + 31]
    assert found(buffers, 0, length) == [length, 2 * length - 1]


def test_parts_of_several_lengths_are_halved_as_each_is() -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal((3, length)) for length in (32, 32, 7, 32, 1)]
    expected = np.stack([halved_sum(part) for part in parts], axis=1)
    assert np.array_equal(halved_together(parts), expected)
