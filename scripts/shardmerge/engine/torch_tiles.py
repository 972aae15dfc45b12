"""Tiles of leaves, added up as torch does, and what is recorded of each for checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from shardmerge.engine.halves import halved_sum
from shardmerge.engine.scratch import scratch
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import TorchNorm, TorchSum, fed, torch_sums
from shardmerge.methods.passes import TorchSums

#: Elements that are added up by one call.
TOGETHER = 4 * BLOCK


class TorchTiles:
    """Answers a request for torch's sums.

    Args:
        wanted: The request.
        shape: Of the tensor.
        codes: Of the values' types, which are one.
        tiles: Adds up the values' parts, or squares.
        rest: Returns what makes the values themselves, where they are fewer than such a part.
    """

    def __init__(
        self,
        wanted: TorchSums,
        shape: Sequence[int],
        codes: Sequence[str],
        tiles: ReducedTiles,
        rest: Callable[[], ReducedTiles],
    ) -> None:
        self.wanted, self.codes = wanted, codes
        self.count = math.prod(shape)
        self.shape = shape
        self._tiles, self._rest = tiles, cache(rest)
        self._seen: list[np.ndarray] = []

    def begin(self) -> None:
        """Expect that all elements are added up in order."""
        self._seen = []
        self._tiles.in_order(self.count)

    def seen(self) -> np.ndarray:
        """Return what was seen of each tile, float64 [tiles, values, numbers].

        Of a sum this is the tile's own sum, of a norm the partial sums after the tile.
        """
        return np.stack(self._seen)

    def some(self, begin: int, count: int) -> np.ndarray:
        """Return the answer for some vectors whose elements follow each other."""
        return torch_sums(self._add, self.shape, self.codes, self.wanted, (begin, count))

    def columns(self) -> np.ndarray:
        """Return the answer for columns."""
        return torch_sums(self._add, self.shape, self.codes, self.wanted)

    def tile(self, sums: Sequence[Any], first: int, count: int) -> np.ndarray:
        """Add a tile to sums; return what is seen of it."""
        self._seen = []
        self.feed(sums, first, count)
        return self._seen[0]

    def feed(self, sums: Sequence[Any], first: int, count: int) -> None:
        """Add consecutive elements of one vector, and note what is seen of each tile of them."""
        whole = count // BLOCK * BLOCK
        if whole:
            add = self._feed_squares if self.wanted.kind == "norm" else self._feed_parts
            self._seen.extend(add(sums, first, whole).astype(np.float64))
        if count == whole:
            return
        parts = self._add(sums, first + whole, count - whole)
        if self.wanted.kind == "norm":
            seen = np.concatenate([one.sums for one in sums]).astype(np.float64)
        else:
            flat = (part.reshape(len(sums), -1).astype(np.float64) for part in parts)
            seen = sum(map(halved_sum, flat))[:, None]
        self._seen.append(seen)

    def _feed_squares(self, sums: Sequence[TorchNorm], first: int, count: int) -> np.ndarray:
        """Add whole tiles; return the partial sums after each, [tiles, values, lanes]."""
        rows = np.empty((count // BLOCK + 1, len(sums), sums[0].lanes), np.float32)
        rows[0] = np.concatenate([one.sums for one in sums])
        self._tiles.add_squares(rows, first, count, BLOCK, carried=True)
        for k, one in enumerate(sums):
            one.sums = rows[-1, k : k + 1]
        return rows[1:]

    def _feed_parts(self, sums: Sequence[TorchSum], first: int, count: int) -> np.ndarray:
        """Add whole tiles; return the sum of each, [tiles, values, 1]."""
        parts = self._tiles.parts(first, count, sums[0].rows)
        for one, own in zip(sums, parts, strict=True):
            one.add_parts(own)
        wide = scratch("wide parts", parts.size, "<f8").reshape(len(sums), count // BLOCK, -1)
        wide[:] = parts.reshape(wide.shape)
        return halved_sum(wide, spent=True).T[:, :, None]

    def _add(self, sums: Sequence[Any], first: int, count: int) -> list[np.ndarray]:
        """Add consecutive elements; return for each value what was added, in parts."""
        whole, parts = _whole(sums[0], count), []
        if whole and self.wanted.kind == "norm":
            self._add_squares(sums, first, whole)
        elif whole:
            parts = [self._tiles.parts(first, whole, sums[0].rows)]
            for one, own in zip(sums, parts[0], strict=True):
                one.add_parts(own)
        if count > whole:
            values = self._rest().values(first + whole, count - whole).astype(np.float32)
            for one, own in zip(sums, values, strict=True):
                one.add(own)
            parts.append(values)
        return parts

    def _add_squares(self, sums: Sequence[TorchNorm], first: int, count: int) -> None:
        rows = np.stack([one.sums for one in sums], axis=1)
        self._tiles.add_squares(rows, first, count, count // len(rows), carried=False)
        for k, one in enumerate(sums):
            one.sums = rows[:, k]


def in_one_pass(several: Sequence[TorchTiles]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each request of one tensor the answer, and what was seen of its tiles."""
    for one in several:
        one.begin()
    running = [fed(one.shape, one.codes, one.wanted, step=TOGETHER) for one in several]
    found: dict[int, np.ndarray] = {}
    while len(found) < len(several):
        for k, (one, steps) in enumerate(zip(several, running, strict=True)):
            if k in found:
                continue
            try:
                one.feed(*next(steps))
            except StopIteration as end:
                found[k] = end.value
    return [(found[k], one.seen()) for k, one in enumerate(several)]


def _whole(one: Any, count: int) -> int:
    """Return how many of consecutive elements native code adds up; values are added of the rest.

    Of several vectors these are all elements or none.
    """
    each = count // one.together
    if not one.size or (one.together > 1 and each % one.size):
        return 0
    return each // one.size * one.size * one.together
