"""Recorded sums and norms in torch's order, compared with what a spread of tiles shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardmerge.check.float_formats import FLOAT_FORMATS
from shardmerge.engine.torch_tiles import TorchTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import TorchNorm, TorchSum

#: How far a sum of float32 in torch's order may be from the tiles' sums to be believed.
_CLOSE = 2.0**-14


def are_seen(tiles: TorchTiles, table: np.ndarray, rows: np.ndarray, chosen: list[int]) -> bool:
    """Whether some tiles show what is recorded; of norms also the last of each sum."""
    chunk, norm = tiles.wanted.chunk or tiles.count, tiles.wanted.kind == "norm"
    for i in chosen:
        first = i * BLOCK
        size = min(BLOCK, tiles.count - first)
        sums: list[Any] = [TorchSum(chunk, code) for code in tiles.codes]
        if norm:
            sums = [TorchNorm(code) for code in tiles.codes]
            if table.shape[2] != sums[0].lanes:
                return False
            for k, one in enumerate(sums if first % chunk else ()):
                one.sums = table[i - 1, k : k + 1].astype(np.float32)
        if not same(tiles.tile(sums, first, size), table[i]):
            return False
    return not norm or _are_norms(tiles, table, rows, chunk)


def _are_norms(tiles: TorchTiles, table: np.ndarray, rows: np.ndarray, chunk: int) -> bool:
    """Whether recorded norms are those of the partial sums after their last tiles."""
    for number, first in enumerate(range(0, tiles.count, chunk)):
        end = min(first + chunk, tiles.count)
        last = (end - 1) // BLOCK
        for k, code in enumerate(tiles.codes):
            norm = TorchNorm(code)
            norm.sums = table[last, k : k + 1].astype(np.float32)
            if end % norm.lanes:  # what fills no vector is added last
                sums: list[Any] = [TorchNorm(code) for code in tiles.codes]
                for j, one in enumerate(sums if last * BLOCK > first else ()):
                    one.sums = table[last - 1, j : j + 1].astype(np.float32)
                tiles.tile(sums, last * BLOCK, end - last * BLOCK)
                norm = sums[k]
            if not same(np.array(norm.result()), rows[k, number]):
                return False
    return True


def add_up(tiles: TorchTiles, table: np.ndarray, rows: np.ndarray) -> bool:
    """Whether recorded sums are about what the tiles' sums add up to."""
    size = -(-(tiles.wanted.chunk or tiles.count) // BLOCK)
    for k, code in enumerate(tiles.codes):
        for number, found in enumerate(rows[k].tolist()):
            own = table[number * size : (number + 1) * size, k, 0]
            near = _CLOSE * np.abs(own).sum() + FLOAT_FORMATS[code].unit * abs(found)
            if not abs(own.sum() - found) <= near:
                return False
    return True


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether numbers are equal, or both NaN."""
    return bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())
