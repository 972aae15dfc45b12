"""Parts of an unstable sort of which no element is held: they are made again when they are read.

A part is parted at a pivot as C++'s library does it: the first number from the left that must not
stay there changes place with the first from the right, the second with the second, and so on. So
what a part has at some places follows from what lay at these places and at those of its partners
before, from the pivot, and from how many numbers changed place up to there. Only these counts are
kept, one for each few thousand places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shardmerge.engine.native import array_code
from shardmerge.engine.stops_text import UNROLLED, stops_text
from shardmerge.methods.contract import BLOCK

#: Places whose stops are counted together.
_GRID = 2048
#: Numbers that are read at once.
READ = 2 * BLOCK
_GREATEST = (1 << 32) - 1


class Part(Protocol):
    """Numbers in their order at some time of a sort."""

    count: int

    def read(self, first: int, size: int) -> np.ndarray:
        """Return consecutive numbers, uint32 [size], in an array of the caller's own."""


@dataclass(frozen=True)
class OpenNumbers:
    """What numbers elements have whose keys are those of others too.

    Args:
        count: Elements.
        one, two: The first numbers of elements of the open keys; the same where one is open.
    """

    count: int
    one: int
    two: int

    def __iter__(self) -> Iterator[int]:
        """Return what native code is given."""
        return iter((self.count, self.one, self.two))

    def ends(self, number: int) -> tuple[int, int]:
        """Return the least number, and one no less than the greatest, of a number's key."""
        for first in (self.one, self.two):
            if 0 <= number - first < self.count:
                return first, first + self.count
        return number, number


@dataclass
class Room:
    """Memory for the numbers of one part, behind one that is never greater.

    Args:
        size: Numbers.
        slack: What can be read behind them.
    """

    size: int
    slack: int
    numbers: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = np.empty(1 + self.size + self.slack, np.uint32)

    def stretch(self, first: int, count: int) -> np.ndarray:
        """Return consecutive numbers with the one before, which is made the least."""
        self.numbers[first] = 0
        return self.numbers[first : first + 1 + count]


@dataclass(frozen=True)
class HeldPart:
    """A part in memory.

    Args:
        numbers: One that is no greater than any, then the part's.
    """

    numbers: np.ndarray

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.numbers) - 1

    def read(self, first: int, size: int) -> np.ndarray:
        """Return a copy of consecutive numbers."""
        return self.numbers[1 + first : 1 + first + size].copy()


class Stops:
    """Lists the places of numbers that must not stay on a side."""

    def __init__(self) -> None:
        self._found = np.zeros(1, np.int64)
        self._make(READ + _GRID)

    def _make(self, most: int) -> None:
        self._numbers = np.zeros(most + UNROLLED, np.uint32)
        self._places = np.empty(len(self._numbers) + 1, np.int64)

    def __call__(self, numbers: np.ndarray, least: int, most: int) -> np.ndarray:
        """Return the places of numbers between two, ascending, until it is called again."""
        count = len(numbers)
        if not count or least > _GREATEST:
            return self._places[:0]
        if count + UNROLLED > len(self._numbers):
            self._make(count)
        self._numbers[:count] = numbers
        whole = -(-count // UNROLLED) * UNROLLED
        more = (least, min(most, _GREATEST) - least)
        array_code(stops_text)(self._places, [self._numbers, self._found], whole, more)
        found = self._places[: self._found[0]]
        return found[: np.searchsorted(found, count)]


@dataclass
class _Zone:
    """Places on one side of where a part is cut.

    Args:
        begin, end: Of the part's places.
        least, most: Numbers between them change place.
        before: How many do before each few places.
    """

    begin: int
    end: int
    least: int
    most: int
    before: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))


class Parted:
    """A part parted at a pivot.

    Args:
        part: At least 4 numbers.
        open_: What numbers elements of open keys have.

    Attributes:
        cut: The first place of the right side.
        low, high: Between them lie all numbers of the pivot's key.
    """

    def __init__(self, part: Part, open_: OpenNumbers, stops: Stops) -> None:
        self._part, self._stops = part, stops
        count = part.count
        first, *three = (int(part.read(i, 1)[0]) for i in (0, 1, count // 2, count - 1))
        which = _median([open_.ends(number)[0] for number in three])
        self._moved = {0: three[which], (1, count // 2, count - 1)[which]: first}
        self.low, self.high = open_.ends(three[which])
        self.cut = 0

    def go(self, room: Room, side: str | None) -> HeldPart | None:
        """Find where it is cut, in one pass; return a side, if that fits into the room.

        Args:
            room: What it is kept in.
            side: Which, if any.
        """
        count = self._part.count
        kept = _Kept(room, count, side)
        blocks = -(-count // _GRID)
        counts = np.zeros((2, blocks), np.int64)
        i, j = 0, count
        left = right = _Queue.empty()
        while i < j:
            if not len(left.places):
                size = min(READ, j - i)
                left = self._left(i, size, counts[0], kept)
                i += size
            if not len(right.places) and i < j:
                begin = max(i, (j - 1) // READ * READ)
                right = self._right(begin, j - begin, counts[1], kept)
                j = begin
            left, right = kept.swap(left, right)
        begin = int(left.places[0]) if len(left.places) else i
        end = int(right.places[0]) + 1 if len(right.places) else j
        self._meet(begin, end, counts, kept)
        return kept.part(self.cut)

    def _left(self, first: int, size: int, counts: np.ndarray, kept: _Kept) -> _Queue:
        numbers = self.own(first, size)
        kept.put("left", first, numbers)
        places = self._stops(numbers, self.low, _GREATEST)
        places = places[np.searchsorted(places, 1 - first) :]
        _tally(counts, places, first, size)
        return _Queue(places + first, numbers[places])

    def _right(self, first: int, size: int, counts: np.ndarray, kept: _Kept) -> _Queue:
        numbers = self.own(first, size)
        kept.put("right", first, numbers)
        places = self._stops(numbers, 0, self.high)
        _tally(counts, places, first, size)
        places = places[::-1]
        return _Queue(places + first, numbers[places])

    def _meet(self, begin: int, end: int, counts: np.ndarray, kept: _Kept) -> None:
        """Part what lies between the sides' last stops, and count it."""
        first, last = begin // _GRID * _GRID, min(-(-end // _GRID) * _GRID, self._part.count)
        numbers = self.own(first, last - first)
        lefts = self._stops(numbers, self.low, _GREATEST) + first
        rights = self._stops(numbers, 0, self.high) + first
        lefts = lefts[lefts >= 1]
        a = lefts[(lefts >= begin) & (lefts < end)]
        b = rights[(rights >= begin) & (rights < end)][::-1]
        few = min(len(a), len(b))
        swapped = int((a[:few] < b[:few]).sum())
        self.cut = int(a[swapped]) if swapped < len(a) else end
        if swapped:
            self.cut = min(self.cut, int(b[swapped - 1]))
        # what would change place with itself stays
        stays = swapped < few and a[swapped] == b[swapped] == self.cut
        zone = self.cut + bool(stays)
        grid = slice(first // _GRID, -(-last // _GRID))
        counts[0, grid.stop :] = counts[1, : grid.start] = 0
        _tally(counts[0], lefts[lefts < self.cut] - first, first, last - first)
        _tally(counts[1], rights[rights >= zone] - first, first, last - first)
        before = np.concatenate([np.zeros((2, 1), np.int64), counts.cumsum(axis=1)], axis=1)
        before = before.astype(np.uint32)
        self._zones = (
            _Zone(1, self.cut, self.low, _GREATEST, before[0]),
            _Zone(zone, self._part.count, 0, self.high, before[1]),
        )
        x, y = a[:swapped] - first, b[:swapped] - first
        numbers[x], numbers[y] = numbers[y], numbers[x]
        kept.put("left", begin, numbers[begin - first : self.cut - first])
        kept.put("right", self.cut, numbers[self.cut - first : end - first])

    def sides(self) -> tuple[Part, Part]:
        """Return what lies on the left, and on the right."""
        left, right = self._zones
        count = self._part.count
        return (
            _Side(self, 0, self.cut, left, right),
            _Side(self, self.cut, count - self.cut, right, left),
        )

    def own(self, first: int, size: int) -> np.ndarray:
        """Return consecutive numbers before they change place, when the pivot is the first."""
        numbers = self._part.read(first, size)
        for place, number in self._moved.items():
            if first <= place < first + size:
                numbers[place - first] = number
        return numbers

    def stops(self, zone: _Zone, first: int, numbers: np.ndarray) -> np.ndarray:
        """Return the places of a zone's stops among numbers from one on, less the first's."""
        places = self._stops(numbers, zone.least, zone.most)
        begin, end = np.searchsorted(places, (zone.begin - first, zone.end - first))
        return places[begin:end]

    def from_end(self, zone: _Zone, skipped: int, count: int) -> np.ndarray:
        """Return a zone's stops from its end on, so many after so many."""
        before = zone.before
        stop = int(before[-1]) - skipped
        start = stop - count
        found = np.empty(count, np.uint32)
        if not count:
            return found
        first, last = np.searchsorted(before, (start, stop - 1), side="right") - 1
        begin, end = int(first) * _GRID, min(int(last + 1) * _GRID, zone.end)
        for place in range(begin, end, READ):
            numbers = self.own(place, min(READ, end - place))
            some = numbers[self.stops(zone, place, numbers)]
            at = int(before[place // _GRID]) - start
            skip, room = max(0, -at), count - max(at, 0)
            some = some[skip : skip + room]
            found[max(at, 0) : max(at, 0) + len(some)] = some
        return found[::-1]


@dataclass
class _Side:
    """What lies on one side of a part that is parted.

    Args:
        parted: The part.
        begin, count: Its places.
        zone: Where numbers changed place, and other, with which they did.
    """

    parted: Parted
    begin: int
    count: int
    zone: _Zone
    other: _Zone

    def read(self, first: int, size: int) -> np.ndarray:
        """Return consecutive numbers."""
        place = first + self.begin
        start = place // _GRID * _GRID
        numbers = self.parted.own(start, size + place - start)
        places = self.parted.stops(self.zone, start, numbers)
        skipped = int(np.searchsorted(places, place - start))
        places = places[skipped:].copy()
        done = int(self.zone.before[start // _GRID]) + skipped
        numbers[places] = self.parted.from_end(self.other, done, len(places))
        return numbers[place - start :]


@dataclass(frozen=True)
class _Queue:
    """Stops that have no partner yet, in the order in which they get one."""

    places: np.ndarray
    numbers: np.ndarray

    @classmethod
    def empty(cls) -> _Queue:
        """Return a queue of none."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint32))

    def after(self, count: int) -> _Queue:
        """Return what is left when so many have got one."""
        return _Queue(self.places[count:], self.numbers[count:])


class _Kept:
    """The numbers of one side, as long as they fit into the room.

    Args:
        room: It lies at the beginning there, or at the end.
        count: Numbers of both sides.
        side: Which is kept, if any.
    """

    def __init__(self, room: Room, count: int, side: str | None) -> None:
        self._room, self._count, self._side = room, count, side
        self._least = 0 if side == "left" else count - room.size
        self._all = room.numbers[1 : 1 + room.size]

    def put(self, side: str, first: int, numbers: np.ndarray) -> None:
        """Keep consecutive numbers if they lie on this side."""
        if side != self._side:
            return
        at = first - self._least
        if at < 0 or at + len(numbers) > self._room.size:
            self._side = None
        else:
            self._all[at : at + len(numbers)] = numbers

    def swap(self, left: _Queue, right: _Queue) -> tuple[_Queue, _Queue]:
        """Let stops change place; return those that have no partner yet."""
        count = min(len(left.places), len(right.places))
        if self._side:
            here, there = (left, right) if self._side == "left" else (right, left)
            self._all[here.places[:count] - self._least] = there.numbers[:count]
        return left.after(count), right.after(count)

    def part(self, cut: int) -> HeldPart | None:
        """Return the side that was kept, None if it did not fit."""
        if self._side == "left":
            return HeldPart(self._room.stretch(0, cut))
        if self._side == "right":
            return HeldPart(self._room.stretch(cut - self._least, self._count - cut))
        return None


def _tally(counts: np.ndarray, places: np.ndarray, first: int, size: int) -> None:
    """Count places for each few of those from the first on."""
    begin, end = first // _GRID, -(-(first + size) // _GRID)
    edges = np.arange(begin, end + 1) * _GRID - first
    counts[begin:end] = np.diff(np.searchsorted(places, edges))


def _median(keys: list[int]) -> int:
    """Return which of three the library takes as the pivot."""
    a, b, c = keys
    if a < b:
        return 1 if b < c else 2 if a < c else 0
    return 0 if a < c else 2 if b < c else 1
