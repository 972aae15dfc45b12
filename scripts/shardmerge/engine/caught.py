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
MOST_CAUGHT = 1 << 23


class CaughtKeys:
    """The keys of tiles that lie in brackets.

    Args:
        brackets: Of some values.
    """

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._brackets = list(brackets)
        self._shape = len(brackets), LANES
        self._found = np.zeros(len(brackets) * (LANES + BLOCK), np.int32)
        self._more = np.array([(0, one.low, one.end - one.low) for one in brackets], np.int64)
        self._kept: list[list[np.ndarray]] = [[] for _ in brackets]
        self._number = 0

    def add(self, tiles: ReducedTiles, first: int, count: int) -> None:
        """Look at a tile.

        Args:
            tiles: Make the key of each element, for each bracket that of its value.
            first, count: Which elements, at most BLOCK.
        """
        if self._number > MOST_CAUGHT:
            return
        tiles.catch(self._found, first, count, self._more)
        begin = math.prod(self._shape)
        for k, own in enumerate(self._kept):
            number = int(self._more[k, 0])
            own.append(self._found[begin : begin + number].copy())
            self._number += number
            begin += BLOCK
        self._more[:, 0] = 0

    def found(self) -> list[tuple[int, np.ndarray]] | None:
        """Return how many keys lie below each bracket, and those in it; None of too many."""
        if self._number > MOST_CAUGHT:
            return None
        below = self._found[: math.prod(self._shape)].reshape(self._shape).view(np.uint32)
        numbers = below.sum(axis=1, dtype=np.int64).tolist()
        return list(zip(numbers, map(np.concatenate, self._kept), strict=True))

    def tile_of(self, k: int, key: int, number: int) -> tuple[int, int]:
        """Return the tile that has the so manieth of a value's equal keys, and how many are before.

        It is the first one, and none, if no bracket tells.
        """
        for one, own in zip(self._brackets, self._kept, strict=True):
            if one.value == k and one.low <= key < one.end:
                upto = np.cumsum([np.count_nonzero(keys == key) for keys in own])
                tile = int(np.searchsorted(upto, number, side="right"))
                return tile, int(upto[tile - 1]) if tile else 0
        return 0, 0
