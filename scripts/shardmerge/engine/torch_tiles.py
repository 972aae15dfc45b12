"""Rows and columns of leaves, added up as torch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import TorchNorm, torch_sums
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
        self.codes = codes
        self._wanted, self._shape = wanted, shape
        self._tiles, self._rest = tiles, cache(rest)

    def some(self, begin: int, count: int) -> np.ndarray:
        """Return the answer for some vectors whose elements follow each other."""
        return torch_sums(self._add, self._shape, self.codes, self._wanted, (begin, count))

    def columns(self) -> np.ndarray:
        """Return the answer for columns."""
        return torch_sums(self._add, self._shape, self.codes, self._wanted)

    def _add(self, sums: Sequence[Any], first: int, count: int) -> None:
        """Add consecutive elements."""
        whole = _whole(sums[0], count)
        if whole and self._wanted.kind == "norm":
            self._add_squares(sums, first, whole)
        elif whole:
            parts = self._tiles.parts(first, whole, sums[0].rows)
            for one, own in zip(sums, parts, strict=True):
                one.add_parts(own)
        if count > whole:
            values = self._rest().values(first + whole, count - whole).astype(np.float32)
            for one, own in zip(sums, values, strict=True):
                one.add(own)

    def _add_squares(self, sums: Sequence[TorchNorm], first: int, count: int) -> None:
        rows = np.stack([one.sums for one in sums], axis=1)
        self._tiles.add_squares(rows, first, count, count // len(rows))
        for k, one in enumerate(sums):
            one.sums = rows[:, k]


def _whole(one: Any, count: int) -> int:
    """Return how many of consecutive elements native code adds up; values are added of the rest.

    Of several vectors these are all elements or none.
    """
    each = count // one.together
    if not one.size or (one.together > 1 and each % one.size):
        return 0
    return each // one.size * one.size * one.together
