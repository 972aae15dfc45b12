"""Values of elements at places in any order, picked while tiles pass by, and ranks among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class PickedValues:
    """Values of some elements of a tensor.

    Args:
        places: Indices of the elements, of one perhaps several times.
        step: Elements of a tile, but of the last.
        count: Elements of the tensor.
        chosen: Numbers of the tiles that are looked at, ascending; None for all.
    """

    def __init__(
        self, places: np.ndarray, step: int, count: int, chosen: Sequence[int] | None = None
    ) -> None:
        number = -(-count // step)
        tile = places // step
        if chosen is not None:
            wanted = np.zeros(number, bool)
            wanted[list(chosen)] = True
            there = wanted[tile]
            places, tile = places[there], tile[there]
        if number <= 1 << 16:
            tile = tile.astype(np.uint16)  # which numpy puts in order by its digits
        self._places = places[np.argsort(tile, kind="stable")]
        self._ends = np.concatenate([[0], np.bincount(tile, minlength=number).cumsum()])
        self._found: list[np.ndarray] = []
        self._step, self._count = step, count
        self._tiles = range(number) if chosen is None else chosen

    def spans(self) -> list[tuple[int, int]]:
        """Return (first, number) of the elements of each tile that is looked at."""
        firsts = (self._step * tile for tile in self._tiles)
        return [(first, min(self._step, self._count - first)) for first in firsts]

    def add(self, values: np.ndarray, first: int) -> None:
        """Take what is wanted of the next tile's values, float32, from an element on."""
        tile = first // self._step
        own = self._places[slice(*self._ends[tile : tile + 2])]
        self._found.append(values[own - first])

    def ranked(self, ranks: Sequence[int]) -> np.ndarray:
        """Return the values that have some ranks; NaN is the greatest."""
        return np.partition(np.concatenate(self._found), ranks)[list(ranks)]

    def counts(self, values: Sequence[float]) -> np.ndarray:
        """Return for values how many of a tile are less, and how many no more, [2, values, tiles].

        Args:
            values: Of which NaN is the greatest.
        """
        made = np.empty((2, len(values), len(self._found)))
        for number, found in enumerate(self._found):
            for k, value in enumerate(values):
                masks = (found < value, found <= value)
                if np.isnan(value):
                    masks = (~np.isnan(found), np.ones(found.shape, bool))
                made[:, k, number] = [np.count_nonzero(mask) for mask in masks]
        return made
