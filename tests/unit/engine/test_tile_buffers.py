"""Elements are read several tiles at once where they are asked for in order."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from shardmerge.engine import native
from shardmerge.engine.halves import halved_sum, halved_together
from shardmerge.engine.tile_buffers import ChosenRows, TileBuffers
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.program import Reduction
from shardmerge.methods.symbolic import Given

COUNT = 6 * BLOCK + 1000


class Files:
    """One leaf of numbers, each its own index."""

    stored, beside = (), None

    def __init__(self) -> None:
        self.values = np.arange(COUNT, dtype=np.uint32)
        self.reads: list[tuple[int, int]] = []

    def read_elements(self, leaf: object, first: int, count: int, into: memoryview) -> None:
        self.reads.append((first, count))
        np.frombuffer(into, np.uint32, count)[:] = self.values[first : first + count].view("u4")


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


def test_elements_before_stay_and_each_is_read_once() -> None:
    """Groups of rows run ahead of the tiles, which need what lies before a group."""
    files, group = Files(), 4 * BLOCK - 512
    buffers = TileBuffers([None], files, [4], behind=BLOCK)
    buffers.until = COUNT
    found_to = 0
    for first in range(0, COUNT, BLOCK):
        count = min(BLOCK, COUNT - first)
        while found_to < first + count:
            some = min(group, COUNT - found_to)
            assert found(buffers, found_to, some) == [found_to, found_to + some - 1]
            found_to += some
        assert found(buffers, first, count) == [first, first + count - 1]
    assert [first for first, _ in files.reads] == sorted({first for first, _ in files.reads})
    assert sum(count for _, count in files.reads) == COUNT


def test_what_lies_before_and_apart_is_read_again() -> None:
    files = Files()
    buffers = TileBuffers([None], files, [4], behind=BLOCK)
    for first in (2 * BLOCK, 5 * BLOCK, 100, 2 * BLOCK + 7):
        assert found(buffers, first, 50) == [first, first + 49]
    assert files.reads == [(2 * BLOCK, 50), (5 * BLOCK, 50), (100, 50), (2 * BLOCK + 7, 50)]


def test_those_that_share_pages_do_not_take_what_the_other_has_read() -> None:
    files, other = Files(), Files()
    other.values = other.values + COUNT
    first = TileBuffers([None], files, [4])
    second = TileBuffers([None], other, [4], room=first)
    assert first.starts == second.starts
    for _ in range(2):
        assert found(first, 10, 20) == [10, 29]
        assert found(second, 10, 20) == [COUNT + 10, COUNT + 29]
    assert TileBuffers([None], files, [2], room=first).starts != first.starts


@pytest.mark.skipif(not native.is_usable(), reason="no native code here")
def test_tiles_that_are_read_together_have_the_sums_of_each() -> None:
    files = Files()
    files.values = np.random.default_rng(1).standard_normal(COUNT).astype(np.float32)
    squares = Reduction(("F32",), (("wide", (0,)), ("times", (1, 1))), (), "sums", (1, 2))
    reduced = ReducedTiles([None], files, squares, Given([]))
    every = range(-(-COUNT // BLOCK))
    together = reduced.table(COUNT, every)
    alone = np.concatenate([reduced.table(COUNT, [tile]) for tile in every], axis=1)
    assert together.tobytes() == alone.tobytes()
    chosen = [0, 1, 3, 5, 6]
    assert np.array_equal(reduced.table(COUNT, chosen), together[:, chosen])


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
