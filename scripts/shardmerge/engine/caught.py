"""Keys that lie in brackets, kept tile by tile: of these few any rank is found without a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from shardmerge.engine.counting import BRACKET, CAUGHT, less_text
from shardmerge.engine.native import array_code
from shardmerge.engine.scratch import scratch
from shardmerge.engine.tile_buffers import AHEAD
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import GREATEST_KEY, KeyBand
from shardmerge.methods.program import LANES, Reducing

#: Keys that are kept at most, of 4 bytes: a twentieth of a tensor of 160 M elements.
MOST_CAUGHT = 1 << 23
#: Returns the indices, ascending, of the elements of a tile that have a key: (key, tile).
PlacesOf = Callable[[int, int], np.ndarray]


class CaughtKeys:
    """The keys of tiles that lie in brackets.

    Args:
        brackets: Of some values.
        marking: Elements of all tiles, if ``marks`` will be asked for.
        step: Elements of a tile, at most AHEAD.
    """

    def __init__(self, brackets: Sequence[Bracket], marking: int = 0, step: int = BLOCK) -> None:
        self._brackets, self._step = list(brackets), step
        number, self._once = len(brackets), AHEAD // step
        self._marking, self._room = marking, 2 * AHEAD
        self._marks = [np.zeros(-(-marking // LANES), np.int32) for _ in brackets]
        begin = CAUGHT + BRACKET * number
        self._more = np.zeros(begin + 2 * number * self._once, np.int64)
        # of each bracket how many keys are kept, how many lie below it, its least key, and how many
        # it may have; of each tile that is looked at the first two behind it
        self._state = self._more[CAUGHT:begin].reshape(number, BRACKET)
        self._behind = self._more[begin:].reshape(self._once, number, 2)
        self._state[:, 2:] = [(one.low, one.end - one.low) for one in brackets]
        self._kept = [0] * number
        self._told: list[np.ndarray] = []
        self._ends = [0]
        self._known: dict[tuple[int, int], np.ndarray] = {}

    @property
    def kind(self) -> Reducing:
        """How values are reduced so that they can be looked at."""
        return "marked" if self._marking else "caught"

    def add(self, tiles: ReducedTiles, first: int, count: int) -> None:
        """Look at tiles that follow each other.

        Args:
            tiles: Make the key of each element, for each bracket that of its value.
            first, count: Which elements, of as many tiles as AHEAD has at most; the last may have
                fewer.
        """
        at_once, end = self._once if tiles.is_one_piece else 1, first + count
        while first < end:
            number = max(min(at_once, (end - first) // self._step), 1)
            size = min(number * self._step, end - first)
            self._look(tiles, first, size, number)
            first += size

    def _look(self, tiles: ReducedTiles, first: int, count: int, number: int) -> None:
        """Look at tiles of one length."""
        if sum(self._kept) > MOST_CAUGHT:
            return
        if max(self._kept) + AHEAD + LANES > self._room:
            self._grow()
        before = self._kept
        self._more[:CAUGHT] = number, self._room
        tiles.catch(self._lists, first, count, self._more)
        self._told.append(self._behind[:number].copy())
        self._ends += range(first + count // number, first + count + 1, count // number)
        self._kept = self._state[:, 0].tolist()
        if not self._marking:
            return
        begin, words = first // LANES, -(-count // LANES)
        beyond = self._lists[2 * len(self._kept) * self._room :].reshape(len(self._kept), -1)
        for k, marks in enumerate(self._marks):
            marks[begin : begin + words] = beyond[k, :words]
            self._where(k)[before[k] :] += np.int32(first)

    @cached_property
    def _lists(self) -> np.ndarray:
        """The keys that are kept; where these are marked, then where they are, then bits."""
        size = len(self._brackets) * self._room
        size += size + size // LANES if self._marking else 0
        # most of it is never touched
        return scratch("caught keys", size, np.int32)

    def _grow(self) -> None:
        """Make room for twice as many keys, which may lie in the same memory."""
        before, room, number = self._lists, self._room, len(self._brackets)
        self._room *= 2
        del self._lists
        for k in reversed(range(2 * number if self._marking else number)):
            kept = self._kept[k % number]
            self._lists[k * self._room :][:kept] = before[k * room :][:kept]

    def found(self) -> list[tuple[int, np.ndarray]] | None:
        """Return how many keys lie below each bracket, and those in it; None of too many.

        They are there until the thread looks at other keys.
        """
        if sum(self._kept) > MOST_CAUGHT:
            return None
        return [(below, self._keys(k)) for k, below in enumerate(self._state[:, 1].tolist())]

    def _keys(self, k: int) -> np.ndarray:
        """Return the keys in a bracket; whole vectors of the last can be read."""
        begin = k * self._room
        return self._lists[begin : begin + self._kept[k]]

    def _where(self, k: int) -> np.ndarray:
        """Return the indices of the elements of these keys."""
        begin = (len(self._brackets) + k) * self._room
        return self._lists[begin : begin + self._kept[k]]

    @cached_property
    def _upto(self) -> np.ndarray:
        """Of each tile how many keys up to its end are kept of each bracket, and lie below it.

        int64 [tiles, brackets, 2].
        """
        return np.concatenate(self._told)

    def marks(self, k: int, band: KeyBand) -> BitMask | None:
        """Return the mask of the elements of a value that lie in a band, None if it is not known.

        It is known of bands to the greatest key from one that lies in a bracket.
        """
        if band.high < GREATEST_KEY or band.at_high[0] > 0 or band.at_high[1] < self._marking:
            return None
        for number, one in enumerate(self._brackets):
            if self._marking and one.value == k and one.low <= band.low < one.end:
                keys, places = self._keys(number), self._where(number)
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
            return np.zeros(len(self._ends) - 1, np.int64)
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
            return np.zeros(len(self._ends) - 1, np.int64)
        if key > GREATEST_KEY:
            return np.diff(self._ends)
        for number, one in enumerate(self._brackets):
            if one.value == k and one.low <= key <= one.end:
                ends, below = self._upto[:, number].T.copy()
                found = np.empty(len(ends), np.int64)
                array_code(less_text)(found, [self._keys(number), ends], len(ends), [key])
                return np.diff(below, prepend=0) + found
        raise LookupError

    def _equal(self, k: int, key: int, ends: Sequence[int], places: PlacesOf | None) -> np.ndarray:
        """Return how many elements of each tile have a key, from one element to another."""
        begin, end = ends
        if begin >= min(end, self._ends[-1]):
            return np.zeros(len(self._ends) - 1, np.int64)
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
        for own, one in enumerate(self._brackets):
            if one.value == k and one.low <= key < one.end:
                at, ends = np.flatnonzero(self._keys(own) == key), self._upto[:, own, 0]
                tile = int(np.searchsorted(ends, at[number], side="right"))
                return tile, int(np.searchsorted(at, ends[tile - 1])) if tile else 0
        return 0, 0
