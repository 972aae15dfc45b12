"""Keys that lie in brackets, kept tile by tile: of these few any rank is found without a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import GREATEST_KEY, KeyBand

#: Keys that are kept at most, of 4 bytes: a twentieth of a tensor of 160 M elements.
MOST_CAUGHT = 1 << 23
#: Returns the indices, ascending, of the elements of a tile that have a key: (key, tile).
PlacesOf = Callable[[int, int], np.ndarray]


class CaughtKeys:
    """The keys of tiles that lie in brackets.

    Args:
        brackets: Of some values.
        marking: Elements of all tiles, if ``marks`` will be asked for.
    """

    def __init__(self, brackets: Sequence[Bracket], marking: int = 0) -> None:
        self._brackets = list(brackets)
        number = len(brackets)
        ends = np.cumsum([number * LANES, number * 2 * BLOCK, number * BLOCK // LANES])
        # most of it is never touched
        self._found = np.empty(ends[-1], np.int32)
        self._below, self._lists, self._beyond = (
            part.reshape(number, -1) for part in np.split(self._found, ends[:-1])
        )
        self._below[:] = 0
        self._more = np.array([(0, one.low, one.end - one.low) for one in brackets], np.int64)
        self._kept: list[list[np.ndarray]] = [[] for _ in brackets]
        self._places: list[list[np.ndarray]] = [[] for _ in brackets]
        self._seen: list[np.ndarray] = []
        self._ends = [0]
        self._known: dict[tuple[int, int], np.ndarray] = {}
        self._marks = [np.zeros(-(-marking // LANES), np.int32) for _ in brackets]
        self._marking, self._number = marking, 0

    def add(self, tiles: ReducedTiles, first: int, count: int) -> None:
        """Look at a tile.

        Args:
            tiles: Make the key of each element, for each bracket that of its value.
            first, count: Which elements, at most BLOCK.
        """
        if self._number > MOST_CAUGHT:
            return
        tiles.catch(self._found, first, count, self._more)
        self._seen.append(self._below.copy())
        self._ends.append(first + count)
        for k, number in enumerate(self._more[:, 0].tolist()):
            self._kept[k].append(self._lists[k, :number].copy())
            self._number += number
            if self._marking:
                self._places[k].append(self._lists[k, BLOCK : BLOCK + number] + np.int32(first))
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

    def counts(self, k: int, band: KeyBand, places: PlacesOf | None) -> np.ndarray | None:
        """Return how many elements of each tile lie in a band of a value's keys.

        Args:
            k: Number of the value.
            band: Between keys that lie in brackets, or beyond which there are none.
            places: Tells which elements of a tile have a key; not needed if all of either end's
                are in the band, or none.

        Returns:
            int64 [tiles], None if the brackets do not tell.
        """
        if band.low > band.high:
            return np.zeros(len(self._seen), np.int64)
        try:
            if band.low == band.high:
                pairs = zip(band.at_low, band.at_high, strict=True)
                ends = [choose(pair) for choose, pair in zip((max, min), pairs, strict=True)]
                return self._equal(k, band.low, ends, places)
            if self._are_all(band.at_high):
                upto = self._less(k, band.high + 1)
            else:
                upto = self._less(k, band.high) + self._equal(k, band.high, band.at_high, places)
            if self._are_all(band.at_low):
                return upto - self._less(k, band.low)
            least = self._equal(k, band.low, band.at_low, places)
            return upto - self._less(k, band.low + 1) + least
        except LookupError:
            return None

    def _are_all(self, ends: Sequence[int]) -> bool:
        return ends[0] <= 0 and ends[1] >= self._ends[-1]

    def _less(self, k: int, key: int) -> np.ndarray:
        """Return how many keys of each tile are less than one; LookupError if that is not known."""
        if (k, key) not in self._known:
            self._known[k, key] = self._count_less(k, key)
        return self._known[k, key]

    def _count_less(self, k: int, key: int) -> np.ndarray:
        if key <= 0:
            return np.zeros(len(self._seen), np.int64)
        if key > GREATEST_KEY:
            return np.diff(self._ends)
        for number, (one, own) in enumerate(zip(self._brackets, self._kept, strict=True)):
            if one.value == k and one.low <= key <= one.end:
                upto = np.stack([seen[number] for seen in self._seen]).view(np.uint32)
                below = np.diff(upto.sum(axis=1, dtype=np.int64), prepend=0)
                return below + [np.count_nonzero(keys < key) for keys in own]
        raise LookupError

    def _equal(self, k: int, key: int, ends: Sequence[int], places: PlacesOf | None) -> np.ndarray:
        """Return how many elements of each tile have a key, from one element to another."""
        begin, end = ends
        if begin >= min(end, self._ends[-1]):
            return np.zeros(len(self._seen), np.int64)
        found = self._less(k, key + 1) - self._less(k, key)
        first, last = (np.array(self._ends[part]) for part in (slice(-1), slice(1, None)))
        found[(last <= begin) | (first >= end)] = 0
        for tile in np.flatnonzero((found > 0) & ((first < begin) | (last > end))).tolist():
            own = places(key, tile)
            found[tile] = np.count_nonzero((own >= begin) & (own < end))
        return found

    def tile_of(self, k: int, key: int, number: int) -> tuple[int, int]:
        """Return the tile that has the so manieth of a value's equal keys, and how many are before.

        It is the first one, and none, if no bracket tells.
        """
        for one, own in zip(self._brackets, self._kept, strict=True):
            if one.value == k and one.low <= key < one.end:
                upto = np.cumsum([np.count_nonzero(keys == key) for keys in own])
                tile = int(np.searchsorted(upto, number, side="right"))
                return tile, int(upto[tile - 1]) if tile else 0
        return 0, 0
