"""Values of elements at places in any order, picked while tiles pass by, and ranks among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class PickedValues:
    """Values of some elements of a tensor.

    Args:
        places: Indices of the elements, of one perhaps several times.
        step: Elements of a tile, but of the last.
    """

    def __init__(self, places: np.ndarray, step: int) -> None:
        self._step = step
        tile = places // step
        if len(tile) and int(tile.max()) < 1 << 16:
            tile = tile.astype(np.uint16)  # which numpy puts in order by its digits
        self._places = places[np.argsort(tile, kind="stable")]
        self._ends = np.concatenate([[0], np.bincount(tile).cumsum()])
        self._found: list[np.ndarray] = []

    def add(self, values: np.ndarray, first: int) -> None:
        """Take what is wanted of a tile's values, float32, from an element on."""
        tile = first // self._step
        own = self._places[slice(*self._ends[tile : tile + 2])]
        self._found.append(values[own - first])

    def ranked(self, ranks: Sequence[int]) -> np.ndarray:
        """Return the values that have some ranks; NaN is the greatest."""
        return np.partition(np.concatenate(self._found), ranks)[list(ranks)]
