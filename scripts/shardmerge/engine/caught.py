"""Keys that lie in brackets, kept tile by tile: of these few any rank is found without a pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.counting import ROOM
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.kernels.brackets import Bracket
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import GREATEST_KEY, KeyBand

#: Keys that are kept at most, of 4 bytes: a twentieth of a tensor of 160 M elements.
MOST_CAUGHT = 1 << 23


class CaughtKeys:
    """The keys of tiles that lie in brackets.

    Args:
        brackets: Of some values.
        marking: Elements of all tiles, if ``marks`` will be asked for.
    """

    def __init__(self, brackets: Sequence[Bracket], marking: int = 0) -> None:
        self._brackets = list(brackets)
        number = len(brackets)
        ends = np.cumsum([number * LANES, number * 2 * ROOM, number * ROOM // LANES])
        # most of it is never touched
        self._found = np.empty(ends[-1], np.int32)
        self._below, self._lists, self._beyond = (
            part.reshape(number, -1) for part in np.split(self._found, ends[:-1])
        )
        self._below[:] = 0
        self._more = np.array([(0, one.low, one.end - one.low) for one in brackets], np.int64)
        self._kept: list[list[np.ndarray]] = [[] for _ in brackets]
        self._places: list[list[np.ndarray]] = [[] for _ in brackets]
        self._marks = [np.zeros(-(-marking // LANES), np.int32) for _ in brackets]
        self._marking, self._number = marking, 0

    def add(self, tiles: ReducedTiles, first: int, count: int) -> None:
        """Look at tiles.

        Args:
            tiles: Make the key of each element, for each bracket that of its value.
            first, count: Which elements, at most ROOM.
        """
        if self._number > MOST_CAUGHT:
            return
        tiles.catch(self._found, first, count, self._more)
        for k, number in enumerate(self._more[:, 0].tolist()):
            self._kept[k].append(self._lists[k, :number].copy())
            self._number += number
            if self._marking:
                self._places[k].append(self._lists[k, ROOM : ROOM + number] + np.int32(first))
                begin, words = first // LANES, -(-count // LANES)
                self._marks[k][begin : begin + words] = self._beyond[k, :words]
        self._more[:, 0] = 0

    def found(self) -> list[tuple[int, np.ndarray]] | None:
        """Return how many keys lie below each bracket, and those in it; None of too many."""
        if self._number > MOST_CAUGHT:
            return None
        numbers = self._below.view(np.uint32).sum(axis=1, dtype=np.int64).tolist()
        return list(zip(numbers, map(np.concatenate, self._kept), strict=True))

    def marks(self, k: int, band: KeyBand) -> BitMask | None:
        """Return the mask of the elements of a value that lie in a band, None if it is not known.

        It is known of bands to the greatest key from one that lies in a bracket.
        """
        if band.high < GREATEST_KEY or band.at_high[0] > 0 or band.at_high[1] < self._marking:
            return None
        for number, one in enumerate(self._brackets):
            if self._marking and one.value == k and one.low <= band.low < one.end:
                keys, places = map(np.concatenate, (self._kept[number], self._places[number]))
                equal = (band.at_low[0] <= places) & (places < band.at_low[1])
                chosen = places[(keys > band.low) | ((keys == band.low) & equal)]
                bits = self._marks[number].view(np.uint8)
                # each is there once, so that its bit is not set
                np.add.at(bits, chosen >> 3, np.uint8(1) << (chosen & 7).astype(np.uint8))
                return BitMask(bits)
        return None

    def part_of(self, k: int, key: int, number: int) -> tuple[int, int]:
        """Return which of what was looked at has the so manieth of a value's equal keys.

        And how many are before. It is the first, and none, if no bracket tells.
        """
        for one, own in zip(self._brackets, self._kept, strict=True):
            if one.value == k and one.low <= key < one.end:
                upto = np.cumsum([np.count_nonzero(keys == key) for keys in own])
                tile = int(np.searchsorted(upto, number, side="right"))
                return tile, int(upto[tile - 1]) if tile else 0
        return 0, 0
