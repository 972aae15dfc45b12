"""The steps of C++'s unstable sort of many elements, as far as a choice by ranks needs them.

Elements are numbers of 32 bits. Of a few million all are held. Of more the sort's first parts are
not: which numbers lie in them, in which order, is found from the elements whenever it is asked for
(``streamed_parts``), until a part is left that fits into the room.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.choice_bounds import Boundaries, KeysOf
from shardmerge.engine.heap_text import heap_text
from shardmerge.engine.memory import chosen_at_once
from shardmerge.engine.native import array_code
from shardmerge.engine.quick_choice_text import chosen_text, numbers_text, parts_text
from shardmerge.engine.streamed_parts import (
    READ,
    AnyPart,
    HeldPart,
    OpenNumbers,
    Parted,
    Room,
)
from shardmerge.methods.passes import Order

#: Above all keys.
_NONE = (1 << 31) - 1
#: What is left of so few elements is sorted by insertion.
_FEW = {"sort": 16, "topk": 3}
#: ``torch.topk`` selects by a heap where no more than one of so many elements is wanted.
_LEAST_SHARE = 64
#: How often a part may be parted, a pass each, before all of it is held whatever its size.
_MOST_PARTED = 24
#: Of a part that is so many times as large as the room it is not tried whether a side fits.
_LARGEST_KEPT = 2
#: One tensor at a time is chosen from, so that the numbers of one are held.
_TURN = threading.Lock()


def choose(keys: KeysOf, count: int, limits: Boundaries, order: Order, bits: np.ndarray) -> None:
    """Set the bits of what is chosen.

    Args:
        keys: Bits of the magnitudes of elements.
        count: Elements.
        limits: Of the choice.
        order: Whose it is.
        bits: Of all elements, in whole vectors.
    """
    if not limits.open:
        _Source(keys, count, limits, bits).tell()
        return
    with _TURN:
        _Choice(keys, count, limits, order, bits).make()


def _open_numbers(count: int, limits: Boundaries) -> OpenNumbers:
    firsts = [key + k * count for k, key in enumerate(limits.open)] or [0]
    return OpenNumbers(count, firsts[0], firsts[-1])


class _Source:
    """The elements' numbers before they are sorted; the first time mask bits are set besides.

    Args:
        keys, count, limits: See ``choose``.
        bits: Which elements are chosen for sure is told here.
    """

    def __init__(self, keys: KeysOf, count: int, limits: Boundaries, bits: np.ndarray) -> None:
        self.count = count
        self._keys, self._bits, self._told = keys, bits, False
        self._code = array_code(numbers_text, limits.descending)
        one, two = (*limits.open, _NONE, _NONE)[:2]
        self._more = count, one, two, limits.least, limits.most
        self._own = np.zeros(READ + LANES, np.uint32)
        self._rest = np.zeros(READ // 8 + LANES, np.uint8)

    def told(self) -> None:
        """Leave the mask as it is from now on."""
        self._told = True

    def tell(self) -> None:
        """Tell what is chosen for sure."""
        for first in range(0, self.count, READ):
            self.read(first, min(READ, self.count - first))

    def read(self, first: int, size: int) -> np.ndarray:
        """Return consecutive numbers, uint32."""
        numbers = np.empty(size + LANES, np.uint32)
        for done in range(0, size, READ):
            self._number(first + done, min(READ, size - done), numbers[done:])
        return numbers[:size]

    def _number(self, first: int, size: int, numbers: np.ndarray) -> None:
        self._own[:size] = self._keys(first, size)
        whole = first % LANES == 0 and (size % LANES == 0 or first + size == self.count)
        bits = self._bits[first // 8 :] if whole and not self._told else self._rest
        self._code(numbers, [self._own, bits], size, [first, *self._more])


@dataclass
class _Task:
    """A part that is to be sorted.

    Args:
        part: Its numbers.
        begin: The rank of its first.
        depth: How often it may be parted.
        parted: How often it was, while it was not held.
        least, most: Its numbers lie between them.
    """

    part: AnyPart
    begin: int
    depth: int
    parted: int
    least: int
    most: int


class _Choice:
    """A choice among the elements of a tensor: see ``choose``."""

    def __init__(
        self, keys: KeysOf, count: int, limits: Boundaries, order: Order, bits: np.ndarray
    ) -> None:
        self._limits, self._order, self._bits = limits, order, bits
        self._open = _open_numbers(count, limits)
        self._source = _Source(keys, count, limits, bits)

    def make(self) -> None:
        """Set the bits of what is chosen."""
        source, count = self._source, self._source.count
        if self._order == "topk" and self._limits.end * _LEAST_SHARE <= count:
            self._select()
            return
        self._room = Room(chosen_at_once(count), LANES)
        tasks = [_Task(source, 0, 2 * (count.bit_length() - 1), 0, 0, (1 << 32) - 1)]
        while tasks:
            task = tasks.pop()
            if self._inside(task):
                tasks += self._sort(task)
            elif self._is_chosen(task) and self._has_open(task):
                for first in range(0, task.part.count, READ):
                    size = min(READ, task.part.count - first)
                    self._tell(task.part.read(first, size))

    def _select(self) -> None:
        """Choose by a heap, through which all elements pass."""
        source, wanted, made = self._source, self._limits.end, False
        numbers = np.empty(wanted + READ + LANES, np.uint32)
        for first in range(0, source.count, READ):
            some = source.read(first, min(READ, source.count - first))
            own = max(0, wanted - first)
            numbers[first : first + own][: len(some)] = some[:own]
            rest = some[own:]
            numbers[wanted : wanted + len(rest)] = rest
            if first + len(some) >= wanted:
                more = [*self._open, wanted, 0, int(made)]
                array_code(heap_text)(numbers, [], wanted + len(rest), more)
                made = True
        self._tell(numbers[:wanted])

    def _inside(self, task: _Task) -> list[int]:
        """Return the first numbers of the keys of the boundaries that lie in a part."""
        ends = (self._limits.begin, self._open.one), (self._limits.end, self._open.two)
        return [key for end, key in ends if task.begin < end < task.begin + task.part.count]

    def _is_chosen(self, task: _Task) -> bool:
        """Whether a part in which no boundary lies is chosen."""
        return self._limits.begin <= task.begin < self._limits.end

    def _has_open(self, task: _Task) -> bool:
        """Whether there may be elements of open keys in a part."""
        firsts = self._open.one, self._open.two
        return any(task.least < one + self._open.count and one <= task.most for one in firsts)

    def _sort(self, task: _Task) -> list[_Task]:
        """Sort a part if it can be held, else part it; return what is left to be sorted."""
        if isinstance(task.part, HeldPart):
            self._sort_held(task, task.part)
            return []
        last = task.depth == 0 or task.parted == _MOST_PARTED
        if task.part.count <= self._room.size or last:
            self._sort_held(task, self._hold(task.part))
            return []
        parted = Parted(task.part, self._open)
        # the side that is wanted is known before, if the pivot has no open key
        firsts = self._inside(task)
        wanted = {"right" if parted.low < one else "left" for one in firsts}
        known = wanted.pop() if len(wanted) == 1 and parted.low not in firsts else None
        if task.part.count > _LARGEST_KEPT * self._room.size:
            known = None
        kept = parted.go(self._room, known)
        self._source.told()
        left, right = parted.sides()
        if kept:
            left, right = (kept, right) if known == "left" else (left, kept)
        made = [
            self._side(task, left, 0, task.least, parted.high),
            self._side(task, right, parted.cut, parted.low, task.most),
        ]
        # what lies in the room comes first
        return made[::-1] if known == "left" else made

    def _side(self, task: _Task, part: AnyPart, first: int, least: int, most: int) -> _Task:
        return _Task(part, task.begin + first, task.depth - 1, task.parted + 1, least, most)

    def _hold(self, part: AnyPart) -> HeldPart:
        """Return a part in memory."""
        room = self._room if part.count <= self._room.size else Room(part.count, LANES)
        numbers = room.stretch(0, part.count)
        for first in range(0, part.count, READ):
            size = min(READ, part.count - first)
            numbers[1 + first : 1 + first + size] = part.read(first, size)
        self._source.told()
        return HeldPart(numbers)

    def _sort_held(self, task: _Task, part: HeldPart) -> None:
        """Sort as far as it is needed, and tell what is chosen of a part."""
        count, own = part.count, part.numbers[1:]
        begin, end = (
            min(max(one - task.begin, 0), count) for one in (self._limits.begin, self._limits.end)
        )
        stack = np.zeros(3 * (task.depth + 2), np.int64)
        stack[:3] = 0, count, task.depth
        state = np.array([0, 0, 3], np.int64)
        while state[0] >= 0:
            more = [*self._open, begin, end, int(state[2]), _FEW[self._order]]
            array_code(parts_text)(state, [part.numbers, stack], count, more)
            if state[0] >= 0:
                first, last = int(state[0]), int(state[1])
                middle, sorts = (end, 0) if self._order == "topk" else (last, 1)
                rest = [*self._open, middle - first, sorts, 0]
                array_code(heap_text)(own[first:], [], last - first, rest)
        self._tell(own[begin:end])

    def _tell(self, numbers: np.ndarray) -> None:
        """Set the bits of elements of open keys."""
        array_code(chosen_text)(self._bits, [numbers], len(numbers), [*self._open])
