"""The numbers of torch's generator for CPUs, the Mersenne Twister, from any element on.

Matsumoto and Nishimura 1998, https://doi.org/10.1145/272991.272995. Its numbers come one after the
other, 624 at a time; states on the way are remembered, so that a thread may begin near where it
wants to be.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

#: Words of a state, and numbers that are made of one.
WORDS = 624
#: States between two that are always remembered, and how many more are.
_EVERY, _RECENT = 1 << 10, 32
#: Bits of a number that a float32 is made of.
_BITS = (1 << 24) - 1
#: Makes numbers of a state, uint32 [WORDS], which goes on: (state, numbers to fill, states that are
#: skipped before).
Fill = Callable[[np.ndarray, np.ndarray, int], None]


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
        self._kept = {0: generator.state["state"]["key"].astype(np.uint32)}
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the numbers of consecutive elements, uint32 [count]."""
        begin, end = first // WORDS, -(-(first + count) // WORDS)
        with self._lock:
            numbers = self._numbers(begin, end)
        numbers &= _BITS
        return numbers[first - begin * WORDS :][:count]

    def _numbers(self, begin: int, end: int) -> np.ndarray:
        """Return the numbers of some states."""
        at = max(k for k in (*self._kept, *self._recent) if k <= begin)
        state = self._kept.get(at, self._recent.get(at)).copy()
        numbers = np.empty((end - begin) * WORDS, np.uint32)
        while at < end:
            # to where a state is remembered: the last of what is asked for, a multiple
            until = min(k for k in (end - 1, end, (at // _EVERY + 1) * _EVERY) if k > at)
            own, upto = (max(k - begin, 0) * WORDS for k in (at, until))
            self._fill(state, numbers[own:upto], max(min(begin, until) - at, 0))
            at = until
            if at % _EVERY == 0:
                self._kept.setdefault(at, state.copy())
            elif at >= end - 1:
                self._recent[at] = state.copy()
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return numbers


def numpy_fill(state: np.ndarray, numbers: np.ndarray, skipped: int = 0) -> None:
    """Fill an array with numbers after a state, whole states of them; move it on.

    Args:
        state: uint32 [WORDS].
        numbers: That are filled.
        skipped: States whose numbers are not wanted.
    """
    generator = np.random.MT19937()
    given = generator.state
    given["state"] = {"key": state, "pos": WORDS}
    generator.state = given
    generator.random_raw(skipped * WORDS, output=False)
    numbers[:] = generator.random_raw(len(numbers))
    state[:] = generator.state["state"]["key"]
