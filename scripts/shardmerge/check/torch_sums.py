"""Recorded sums and norms in torch's order, compared with what a spread of tiles shows."""

from __future__ import annotations

import numpy as np

from shardmerge.check.float_formats import FLOAT_FORMATS
from shardmerge.engine.torch_whole import TorchVector, TorchWhole
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import TorchNorm

#: How far a sum of float32 in torch's order may be from the tiles' sums to be believed.
_CLOSE = 2.0**-14


def are_seen(whole: TorchWhole, table: np.ndarray, rows: np.ndarray, chosen: list[int]) -> bool:
    """Whether some tiles show what is recorded of a request; of norms also the last of each sum."""
    norm = whole.wanted[0].kind == "norm"
    if norm and table.shape[2] != TorchNorm(whole.codes[0][0]).lanes:
        return False
    for i in chosen:
        if not same(_made_again(whole, table, i).seen(0)[0], table[i]):
            return False
    return not norm or _are_norms(whole, table, rows)


def _made_again(whole: TorchWhole, table: np.ndarray, tile: int) -> TorchVector:
    """Return what a tile is added to, with the partial sums before it that are recorded."""
    first = tile * BLOCK
    begin = first - first % whole.chunk
    end = min(begin + whole.chunk, whole.count)
    carried = first > begin and whole.wanted[0].kind == "norm"
    before = table[tile - 1] if carried else None
    return TorchVector(whole, end - begin, first, min(BLOCK, end - first), before)


def _are_norms(whole: TorchWhole, table: np.ndarray, rows: np.ndarray) -> bool:
    """Whether recorded norms are those of the partial sums after their last tiles."""
    for number, first in enumerate(range(0, whole.count, whole.chunk)):
        end = min(first + whole.chunk, whole.count)
        last = (end - 1) // BLOCK
        norms = [TorchNorm(code) for code in whole.codes[0]]
        for norm, sums in zip(norms, table[last].astype(np.float32), strict=True):
            norm.sums = sums[None]
        found = np.array([norm.result() for norm in norms])[:, 0]
        if end % norms[0].lanes:  # what fills no vector is added last
            found = _made_again(whole, table, last).results(0)
        if not same(found, rows[:, number]):
            return False
    return True


def add_up(whole: TorchWhole, table: np.ndarray, rows: np.ndarray) -> bool:
    """Whether recorded sums are about what the tiles' sums add up to."""
    size = -(-whole.chunk // BLOCK)
    for k, code in enumerate(whole.codes[0]):
        for number, found in enumerate(rows[k].tolist()):
            own = table[number * size : (number + 1) * size, k, 0]
            near = _CLOSE * np.abs(own).sum() + FLOAT_FORMATS[code].unit * abs(found)
            if not abs(own.sum() - found) <= near:
                return False
    return True


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether numbers are equal, or both NaN."""
    return bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())
