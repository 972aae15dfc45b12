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
from shardmerge.engine.parted_text import UNROLLED, counts_text, listed_text, replaced_text
from shardmerge.methods.contract import BLOCK

#: Places whose stops are counted together.
_GRID = 2048
#: Numbers that are read at once.
READ = 2 * BLOCK
_GREATEST = (1 << 32) - 1


class AnyPart(Protocol):
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


@dataclass(frozen=True)
class _Test:
    """Which numbers must not stay on a side: those between two."""

    least: int
    most: int

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return a mask."""
        return (numbers >= self.least) & (numbers <= self.most)

    def counts(self, numbers: np.ndarray) -> np.ndarray:
        """Return how many there are in each few consecutive numbers, int64."""
        whole, rest = divmod(len(numbers), _GRID)
        found = np.empty(whole + bool(rest), np.int64)
        if whole:
            array_code(counts_text, _GRID)(found, [numbers], whole, self.width)
        if rest:
            found[whole] = np.count_nonzero(self(numbers[whole * _GRID :]))
        return found

    def count(self, numbers: np.ndarray) -> int:
        """Return how many there are."""
        return int(self.counts(numbers).sum())

    @property
    def width(self) -> tuple[int, int]:
        """What native code is given."""
        return self.least, self.most - self.least


@dataclass(frozen=True)
class _Zone:
    """Places on one side of where a part is cut.

    Args:
        begin, end: Of the part's places.
        test: Which numbers change place.
        before: How many do before each few places.
    """

    begin: int
    end: int
    test: _Test
    before: np.ndarray


class Parted:
    """A part parted at a pivot.

    Args:
        part: At least 4 numbers.
        open_: What numbers elements of open keys have.

    Attributes:
        cut: The first place of the right side.
        low, high: Between them lie all numbers of the pivot's key.
    """

    def __init__(self, part: AnyPart, open_: OpenNumbers) -> None:
        self._part = part
        count = part.count
        first, *three = (int(part.read(i, 1)[0]) for i in (0, 1, count // 2, count - 1))
        which = _median([open_.ends(number)[0] for number in three])
        self._moved = {0: three[which], (1, count // 2, count - 1)[which]: first}
        self.low, self.high = open_.ends(three[which])
        self._tests = _Test(self.low, _GREATEST), _Test(0, self.high)
        self.cut = 0

    def go(self, room: Room, side: str | None) -> HeldPart | None:
        """Find where it is cut, in one pass; return a side, if that fits into the room.

        Args:
            room: What it is kept in.
            side: Which, if any.
        """
        count = self._part.count
        counts = np.zeros((2, -(-count // _GRID) + 1), np.int64)
        kept = _Kept(room, count, side, self._tests)
        i, j = 0, count
        while i < j:
            if kept.wants == "left":
                first, size = i, min(READ, j - i)
                i += size
            else:
                first = max(i, (j - 1) // READ * READ)
                size = j - first
                j = first
            numbers = self.own(first, size)
            begin, end = first // _GRID, -(-(first + size) // _GRID)
            for own, test in zip(counts, self._tests, strict=True):
                own[begin:end] = test.counts(numbers)
            kept.add(first, numbers)
        # the first place, where the pivot lies, has no part in it
        counts[0, 0] -= self._tests[0](np.array([self._moved[0]]))[0]
        self._find_cut(counts)
        if not kept.fits:
            return None
        first, last = kept.unsettled(i)
        kept.settle(first, self.own(first, last - first), self.cut)
        return kept.part(self.cut)

    def _find_cut(self, counts: np.ndarray) -> None:
        """Find where the sides meet.

        Args:
            counts: Of each few places how many must not stay on the left, and on the right.
        """
        total = self._part.count
        lefts = np.concatenate([[0], counts[0, :-1].cumsum()])
        rights = counts[1, ::-1].cumsum()[::-1]
        here = int(np.searchsorted(lefts > rights, True)) - 1
        first = here * _GRID
        last = min(first + _GRID, total)
        numbers = self.own(first, last - first)
        a, b = (np.flatnonzero(test(numbers)) + first for test in self._tests)
        a, b = a[a > 0], b[::-1]
        before, behind = int(lefts[here]), int(rights[here + 1])
        done = max(before, behind)
        x, y = a[done - before :], b[done - behind :]
        few = min(len(x), len(y))
        swapped = done + int((x[:few] < y[:few]).sum())
        ends = [last, *a[swapped - before :][:1]]
        if swapped > behind:
            ends.append(b[swapped - behind - 1])
        self.cut = int(min(ends))
        # what would change place with itself stays
        same = [*a[swapped - before :][:1], *b[swapped - behind :][:1]]
        begin = self.cut + (same == [self.cut, self.cut])
        self._zones = (
            _Zone(1, self.cut, self._tests[0], np.minimum(lefts, swapped).astype(np.uint32)),
            _Zone(
                begin, total, self._tests[1], (swapped - np.minimum(rights, swapped)).astype("u4")
            ),
        )

    def sides(self) -> tuple[AnyPart, AnyPart]:
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

    def listed(self, zone: _Zone, start: int, stop: int) -> np.ndarray:
        """Return some of the numbers of a zone that change place, in their order.

        Args:
            zone: Where they lie.
            start, stop: The first, and the first that is not returned.
        """
        before = zone.before
        first, last = (int(k) for k in np.searchsorted(before, (start, stop - 1), "right") - 1)
        begin, end = max(first * _GRID, zone.begin), min((last + 1) * _GRID, zone.end)
        skipped, total = int(before[first]), int(before[last + 1])
        # behind and before there is room for what native code looks at besides
        found = np.empty(total - skipped + 2 * UNROLLED, np.uint32)
        at = UNROLLED
        for place in range(first * _GRID, end, READ):
            some = max(place, begin)
            stop_ = min(place + READ, end)
            numbers = self.own(some, stop_ - some)
            array_code(listed_text)(found[at:], [numbers], stop_ - some, zone.test.width)
            at = UNROLLED - skipped + int(before[-(-stop_ // _GRID)])
        return found[UNROLLED + start - skipped :]


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
        """Return consecutive numbers; there is room for a few more behind them."""
        zone = self.zone
        place = first + self.begin
        start = max(place // _GRID * _GRID, min(zone.begin, place))
        numbers = self.parted.own(start, size + place - start)
        own = numbers[place - start :]
        done = int(zone.before[start // _GRID]) + zone.test.count(numbers[: place - start])
        skipped = max(zone.begin - place, 0)
        count = zone.test.count(own[skipped:])
        if count:
            stop = int(zone.before[-1]) - done
            others = self.parted.listed(self.other, stop - count, stop)
            more = (*zone.test.width, count)
            array_code(replaced_text)(own[skipped:], [others], size - skipped, more)
        return own


class _Kept:
    """The numbers of one side, as long as they fit into the room, while a part is gone through.

    Args:
        room: Where the left side lies at the beginning, and the right side at the end.
        count: Numbers of both sides.
        side: Which is kept, if any.
        tests: Which numbers must not stay on the left, and on the right.
    """

    def __init__(
        self, room: Room, count: int, side: str | None, tests: tuple[_Test, _Test]
    ) -> None:
        self._room, self._count, self._side, self._tests = room, count, side, tests
        self._least = 0 if side == "left" else count - room.size
        self._all = room.numbers[1 : 1 + room.size]
        self._queues = [_Queue.empty(), _Queue.empty()]
        self._turn = 0

    @property
    def fits(self) -> bool:
        """Whether all is kept up to now."""
        return self._side is not None

    @property
    def wants(self) -> str:
        """From which end the next numbers are to be taken."""
        return ("left", "right")[self._turn]

    def add(self, first: int, numbers: np.ndarray) -> None:
        """Take what comes next from the end that is wanted: (place of the first, numbers)."""
        if not self.fits:
            return
        self._put(self.wants, first, numbers)
        places = np.flatnonzero(self._tests[self._turn](numbers))
        if self._turn:
            places = places[::-1]
        elif first == 0:
            places = places[places > 0]
        self._queues[self._turn] = _Queue(places + first, numbers[places])
        self._pair()
        self._turn = int(bool(len(self._queues[0].places)))

    def _put(self, side: str, first: int, numbers: np.ndarray) -> None:
        """Keep consecutive numbers if they lie on the side that is kept."""
        if side != self._side:
            return
        at = first - self._least
        if at < 0 or at + len(numbers) > self._room.size:
            self._side = None
        else:
            self._all[at : at + len(numbers)] = numbers

    def _pair(self) -> None:
        """Let numbers change place as long as there are some at both ends."""
        left, right = self._queues
        count = min(len(left.places), len(right.places))
        if self.fits:
            here, there = (left, right) if self._side == "left" else (right, left)
            self._all[here.places[:count] - self._least] = there.numbers[:count]
        self._queues = [left.after(count), right.after(count)]

    def unsettled(self, met: int) -> tuple[int, int]:
        """Return between which places numbers have no partner yet, given where the ends met."""
        left, right = self._queues
        first = int(left.places[0]) if len(left.places) else met
        return first, int(right.places[0]) + 1 if len(right.places) else met

    def settle(self, first: int, numbers: np.ndarray, cut: int) -> None:
        """Let what is left change place: (place of the first, numbers, where they are cut)."""
        a, b = (np.flatnonzero(test(numbers)) for test in self._tests)
        a, b = a[a + first > 0], b[::-1]
        few = min(len(a), len(b))
        swapped = int((a[:few] < b[:few]).sum())
        x, y = a[:swapped], b[:swapped]
        numbers[x], numbers[y] = numbers[y], numbers[x]
        self._put("left", first, numbers[: cut - first])
        self._put("right", cut, numbers[cut - first :])

    def part(self, cut: int) -> HeldPart | None:
        """Return the side that was kept, None if it did not fit."""
        if self._side == "left":
            return HeldPart(self._room.stretch(0, cut))
        if self._side == "right":
            return HeldPart(self._room.stretch(cut - self._least, self._count - cut))
        return None


@dataclass(frozen=True)
class _Queue:
    """Numbers that have no partner yet, in the order in which they get one."""

    places: np.ndarray
    numbers: np.ndarray

    @classmethod
    def empty(cls) -> _Queue:
        """Return a queue of none."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint32))

    def after(self, count: int) -> _Queue:
        """Return what is left when so many have got one."""
        return _Queue(self.places[count:], self.numbers[count:])


def _median(keys: list[int]) -> int:
    """Return which of three the library takes as the pivot."""
    a, b, c = keys
    if a < b:
        return 1 if b < c else 2 if a < c else 0
    return 0 if a < c else 2 if b < c else 1
