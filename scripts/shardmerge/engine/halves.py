"""Sums by halves, as ``kernels.blocks.tree_sum`` makes them, of what native code leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def halved_together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sums of parts by halves, [sums, parts]: those of one length in one go."""
    sums = np.empty((len(parts[0]), len(parts)))
    for length in {part.shape[1] for part in parts}:
        some = [k for k, part in enumerate(parts) if part.shape[1] == length]
        x = np.empty((length, len(sums), len(some)), parts[0].dtype)
        for place, k in enumerate(some):
            x[:, :, place] = parts[k].T
        sums[:, some] = halved_sum(x, 0, spent=True)
    return sums


def halved_sum(x: np.ndarray, axis: int = -1, *, spent: bool = False) -> np.ndarray:
    """Return the sum over a dimension as ``kernels.blocks.tree_sum`` makes it.

    Args:
        x: Numbers.
        axis: The dimension.
        spent: Whether they may be overwritten.
    """
    x = np.moveaxis(x, axis, 0) if axis else x
    x = x if spent else x.copy(order="K")
    count = len(x)
    if count == 0:
        return np.zeros(x.shape[1:])
    while count > 1:
        half = count // 2
        x[:half] += x[count - half : count]
        count -= half
    return x[0].copy()
