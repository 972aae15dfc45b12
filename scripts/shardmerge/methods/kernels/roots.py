"""Square roots: the same bits everywhere. Torch's are off by a bit for one number in a hundred."""

from __future__ import annotations

import math
from typing import overload

import numpy as np


@overload
def root(square: float) -> float: ...


@overload
def root(square: np.ndarray) -> np.ndarray: ...


def root(square: float | np.ndarray) -> float | np.ndarray:
    """Return square roots in float64, rounded correctly; numbers below 0 count as 0.

    Args:
        square: A number, or float64 numbers.
    """
    if isinstance(square, np.ndarray):
        return np.sqrt(np.maximum(square, 0.0))
    return math.sqrt(square) if not square <= 0 else 0.0
