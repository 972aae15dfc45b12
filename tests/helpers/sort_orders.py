"""Orders that sorts find hard."""

from __future__ import annotations

import numpy as np


def bad_order(count: int) -> np.ndarray:
    """Return an order for which quicksort by a median of three goes wrong (Musser 1997)."""
    half = count // 2
    made = np.empty(count, "f4")
    made[:half:2] = np.arange(1, half + 1, 2)
    made[1:half:2] = np.arange(half + 1, 2 * half + 1, 2)
    made[half:] = 2 * np.arange(1, count - half + 1)
    return made
