"""Keys that lie in brackets, kept tile by tile: of these few any rank is found without a pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket

#: Keys that are kept at most, of 4 bytes: a twentieth of a tensor of 160 M elements.
_MOST = 1 << 23


class CaughtKeys:
    """The keys of tiles of one value that lie in brackets.

    Args:
        brackets: Of that value.
    """

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._shape = len(brackets), LANES
        self._found = np.zeros(len(brackets) * LANES + BLOCK, np.int32)
        sizes = [number for one in brackets for number in (one.low, one.parts << one.shift)]
        self._more = np.array([0, *sizes], np.int64)
        self._kept: list[np.ndarray] = []
        self._number = 0

    def add(self, tiles: ReducedTiles, first: int, count: int) -> None:
        """Look at a tile.

        Args:
            tiles: Make the key of each element, for each bracket once.
            first, count: Which elements, at most BLOCK.
        """
        if self._number > _MOST:
            return
        tiles.catch(self._found, first, count, self._more)
        begin, number = math.prod(self._shape), int(self._more[0])
        self._kept.append(self._found[begin : begin + number].copy())
        self._number += number
        self._more[0] = 0

    def found(self) -> tuple[list[int], np.ndarray] | None:
        """Return how many keys lie below each bracket, and all kept keys; None of too many."""
        if self._number > _MOST:
            return None
        below = self._found[: math.prod(self._shape)].reshape(self._shape).view(np.uint32)
        return below.sum(axis=1, dtype=np.int64).tolist(), np.concatenate(self._kept)
