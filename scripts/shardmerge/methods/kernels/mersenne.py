"""The numbers of torch's generator for CPUs, the Mersenne Twister, from any element on.

Matsumoto and Nishimura 1998, https://doi.org/10.1145/272991.272995. Its numbers come one after the
other, 624 at a time; states on the way are remembered, so that a thread may begin near where it
wants to be.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shardmerge.methods.kernels.masks import ElementSpan, in_one_array
from shardmerge.methods.program import LANES

#: Words of a state, and numbers that are made of one.
WORDS = 624
#: States between two that are always remembered, and how many more are.
_EVERY, _RECENT = 1 << 10, 32
#: Bits of a number that a float32 is made of.
USED_BITS = (1 << 24) - 1


class Stretch(NamedTuple):
    """States that follow each other.

    Args:
        start: The state before them, uint32 [WORDS]; None for the last of the stretch before.
        skipped: How many are gone through first.
        made: How many have numbers that are wanted.
        end: Where the last of them is written, uint32 [WORDS]; None for nowhere.
    """

    start: np.ndarray | None
    skipped: int
    made: int
    end: np.ndarray | None


#: Fills an array, uint32, with the numbers of stretches, of 24 bits, one after the other.
Fill = Callable[[np.ndarray, Sequence[Stretch]], None]


class Mersenne:
    """The numbers of 24 bits that torch makes float32 of.

    Args:
        seed: Of the generator; 32 bits of it count.
        fill: Makes numbers.
    """

    def __init__(self, seed: int, fill: Fill | None = None) -> None:
        self._fill = fill or numpy_fill
        generator = np.random.MT19937()
        generator._legacy_seeding(seed & 0xFFFFFFFF)
        # by how many come before; those in order; and which of them are forgotten again
        self._states = {0: generator.state["state"]["key"].astype(np.uint32)}
        self._order, self._recent = [0], deque[int]()
        self._lock = threading.Lock()

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the numbers of consecutive elements, uint32 [count]."""
        return self.of_spans([(first, count)])

    def of_spans(self, spans: Sequence[ElementSpan]) -> np.ndarray:
        """Return the numbers of spans of elements, ascending, one after the other."""
        ranges: list[list[int]] = []  # of states whose numbers are made
        made, places = 0, []
        for first, count in spans:
            begin, end = first // WORDS, -(-(first + count) // WORDS)
            if not (ranges and begin < ranges[-1][1]):
                ranges.append([begin, begin])
            end = max(end, ranges[-1][1])
            made += end - ranges[-1][1]
            ranges[-1][1] = end
            places.append((made - end) * WORDS + first)
        # of the last numbers too whole vectors can be read
        numbers = np.empty(made * WORDS + LANES, np.uint32)
        with self._lock:
            self._fill(numbers[: made * WORDS], [*self._stretches(ranges)])
            while len(self._recent) > _RECENT:
                self._forget(self._recent.popleft())
        pairs = zip(places, spans, strict=True)
        return in_one_array([numbers[place : place + count] for place, (_, count) in pairs])

    def _stretches(self, ranges: Sequence[Sequence[int]]) -> Iterator[Stretch]:
        """Yield stretches with the numbers of ranges of states."""
        at, last = -1, ranges[-1][1]
        for begin, end in ranges:
            near = self._order[bisect.bisect_right(self._order, begin) - 1]
            start = self._states[near] if near > at else None
            at = max(near, at)
            while at < end:
                # to where a state is remembered: a multiple, the last of what is asked for
                multiple = (at // _EVERY + 1) * _EVERY
                until = min(k for k in (end, multiple, last - 1) if k > at)
                skipped = max(min(begin, until) - at, 0)
                kept = until in (multiple, last - 1, last) and until not in self._states
                yield Stretch(
                    start, skipped, until - at - skipped, self._remember(until) if kept else None
                )
                at, start = until, None

    def _remember(self, at: int) -> np.ndarray:
        """Return where a state is to be written, to be used later."""
        self._states[at] = np.empty(WORDS, np.uint32)
        bisect.insort(self._order, at)
        if at % _EVERY:
            self._recent.append(at)
        return self._states[at]

    def _forget(self, at: int) -> None:
        del self._states[at]
        del self._order[bisect.bisect_left(self._order, at)]


def numpy_fill(numbers: np.ndarray, stretches: Sequence[Stretch]) -> None:
    """Fill an array with the numbers of stretches.

    Args:
        numbers: That are filled.
        stretches: Of states.
    """
    generator, place = np.random.MT19937(), 0
    for start, skipped, made, end in stretches:
        if start is not None:
            given = generator.state
            given["state"] = {"key": start, "pos": WORDS}
            generator.state = given
        generator.random_raw(skipped * WORDS, output=False)
        count = made * WORDS
        numbers[place : place + count] = generator.random_raw(count) & USED_BITS
        place += count
        if end is not None:
            end[:] = generator.state["state"]["key"]
