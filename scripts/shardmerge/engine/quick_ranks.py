"""Native code for ranks within rows as the sort of C++'s library has them, where torch uses it.

It is an introspective quicksort: the pivot is the median of the second, the middle and the last
element, what is left of at most 16 elements is sorted by insertion. It is not stable, so that the
ranks of equal values depend on every step. Whether torch has the same ranks is tried once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.engine.native import array_code
from shardmerge.engine.quick_text import quick_text

if TYPE_CHECKING:
    import torch

#: Rows that are tried: (rows, length, different values).
_TRIED = ((40, 17, 5), (8, 100, 30), (4, 1000, 3), (4, 1000, 200), (2, 5000, 250))


def ranks_like_torch(values: np.ndarray, wanted: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the ranks along rows, [rows, length], as ``torch.argsort`` has them.

    Args:
        values: float32 [rows, length], not negative, which the type has.
        wanted: Whose ranks are asked for, bool; other elements' are not told.
        dtype: That torch sorts.
    """
    from shardmerge.methods.kernels.execute import torch_ranks

    if not _is_torchs(dtype):
        return torch_ranks(values, dtype)
    ranks, done = _quick_ranks(values, wanted)
    if len(rest := np.flatnonzero(done == 0)):
        ranks[rest] = torch_ranks(values[rest], dtype)
    return ranks


@cache
def _is_torchs(dtype: torch.dtype) -> bool:
    """Whether torch has the same ranks, in what is tried."""
    from shardmerge.methods.kernels.execute import torch_ranks

    random = np.random.default_rng(0)
    for rows, length, different in _TRIED:
        values = random.integers(0, different, (rows, length)).astype(np.float32) / 64
        ranks, done = _quick_ranks(values, np.ones(values.shape, bool))
        if not (done.all() and np.array_equal(ranks, torch_ranks(values, dtype))):
            return False
    return True


def _quick_ranks(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks, uint32, and which rows were sorted: another sort is for those that fall apart.

    Args:
        values: float32 [rows, length], not negative.
        wanted: Whose ranks are asked for.
    """
    rows, length = values.shape
    keys, wanted = np.ascontiguousarray(values), np.ascontiguousarray(wanted)
    ranks, done = np.empty(values.shape, np.uint32), np.zeros(rows, np.uint8)
    depth = 2 * (length.bit_length() - 1)
    # before the first element lies one that is never greater
    room = np.zeros(length + 1, np.uint64)
    stack = np.empty(5 * (depth + 2), np.int64)
    array_code(quick_text)(ranks, [keys, room, stack, done, wanted], length, [rows, depth])
    return ranks, done
