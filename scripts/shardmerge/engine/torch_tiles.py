"""Tiles of leaves, added up as torch does, and what is recorded of each for checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.tiles import ReducedTiles, halved_sum
from shardmerge.methods.kernels.torch_order import TorchNorm, TorchSum, torch_sums
from shardmerge.methods.passes import TorchSums


class TorchTiles:
    """Answers a request for torch's sums.

    Args:
        wanted: The request.
        count: Elements of the tensor.
        codes: Of the values' types, which are one.
        tiles: Adds up the values' parts, or squares.
        rest: Makes the values themselves, which are fewer than such a part.
    """

    def __init__(
        self,
        wanted: TorchSums,
        count: int,
        codes: Sequence[str],
        tiles: ReducedTiles,
        rest: ReducedTiles,
    ) -> None:
        self.wanted, self.count, self.codes = wanted, count, codes
        self._tiles, self._rest = tiles, rest
        self._seen: list[np.ndarray] = []

    def answer(self) -> tuple[list, np.ndarray]:
        """Return the answer, and what was seen of each tile, float64 [tiles, values, numbers].

        Of a sum this is the tile's own sum, of a norm the partial sums after the tile.
        """
        self._seen = []
        return torch_sums(self._feed, self.count, self.codes, self.wanted), np.stack(self._seen)

    def tile(self, sums: Sequence[Any], first: int, count: int) -> np.ndarray:
        """Add a tile to sums; return what is seen of it."""
        self._seen = []
        self._feed(sums, first, count)
        return self._seen[0]

    def _feed(self, sums: Sequence[Any], first: int, count: int) -> None:
        add = self._add_squares if self.wanted.kind == "norm" else self._add_parts
        unit = LANES if self.wanted.kind == "norm" else sums[0].size
        whole = count // unit * unit
        seen = np.zeros((len(sums), 1))
        if whole:
            seen = add(sums, first, whole)
        if count > whole:
            values = self._rest.values(first + whole, count - whole)
            for one, own in zip(sums, values.astype(np.float32), strict=True):
                one.add(own)
            seen = seen + halved_sum(values)[:, None]
        if self.wanted.kind == "norm":
            seen = np.concatenate([one.sums for one in sums]).astype(np.float64)
        self._seen.append(seen)

    def _add_parts(self, sums: Sequence[TorchSum], first: int, count: int) -> np.ndarray:
        found = self._tiles.parts(first, count, sums[0].rows)
        for one, parts in zip(sums, found, strict=True):
            one.add_parts(parts)
        return halved_sum(found.reshape(len(sums), -1).astype(np.float64))[:, None]

    def _add_squares(self, sums: Sequence[TorchNorm], first: int, count: int) -> np.ndarray:
        rows = np.concatenate([one.sums for one in sums])
        self._tiles.add_squares(rows, first, count)
        for k, one in enumerate(sums):
            one.sums = rows[k : k + 1]
        return np.zeros((len(sums), 1))
