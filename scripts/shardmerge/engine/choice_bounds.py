"""Between which keys and ranks a choice lies: what is chosen for sure, and what a sort decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from shardmerge.algebra.samples import Runs
from shardmerge.engine.quick_choice_text import NAN
from shardmerge.methods.kernels.masks import numbers_of
from shardmerge.methods.passes import Ranks

#: Returns the keys of consecutive elements, uint32: (first, count).
KeysOf = Callable[[int, int], np.ndarray]
#: Elements of runs that are looked at together, about.
_TOGETHER = 1 << 21


@dataclass(frozen=True)
class Boundaries:
    """Which elements are chosen for sure, and between which the sort alone decides.

    Keys are as they are sorted: a descending order has its own.

    Args:
        descending: The greatest magnitude has the least key.
        least, most: Elements of keys between them are chosen, those included.
        open: Keys of which some elements are chosen, ascending.
        begin, end: The ranks between which those lie.
    """

    descending: bool
    least: int
    most: int
    open: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def of(cls, ranks: Ranks, count: int, low: int, high: int) -> Boundaries:
        """Return those of some ranks, at least one.

        Args:
            ranks: The last of them less than the number of elements.
            count: Elements.
            low, high: The least and the greatest bits of a magnitude with such a rank.
        """
        low, high = min(low, NAN), min(high, NAN)
        first, last = (NAN - high, NAN - low) if ranks.descending else (low, high)
        zero = NAN if ranks.descending else 0
        begins, ends = ranks.start > 0, ranks.stop < count
        # which zeros are chosen does not matter
        keys = {key for key, is_open in ((first, begins), (last, ends)) if is_open} - {zero}
        return cls(
            ranks.descending,
            first + 1 if begins else 0,
            last - 1 if ends else NAN,
            tuple(sorted(keys)),
            ranks.start if begins and first != zero else 0,
            ranks.stop if ends and last != zero else count,
        )

    def told(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return by the bits of magnitudes which elements are chosen for sure, and which perhaps.

        Args:
            keys: uint32 [elements].
        """
        least, most, open_keys = self.least, self.most, self.open
        if self.descending:
            least, most, open_keys = NAN - most, NAN - least, [NAN - key for key in open_keys]
        # a NaN has whatever bits from that key on
        sure = keys >= least
        if most < NAN:
            sure &= keys <= most
        perhaps = np.zeros_like(sure)
        for key in open_keys:
            perhaps |= keys >= NAN if key == NAN else keys == key
        return sure, perhaps

    def told_of(self, keys: KeysOf, runs: Runs) -> Iterator[tuple[Runs, np.ndarray, np.ndarray]]:
        """Tell as ``told`` does of the elements of runs, of some runs at a time, which it names."""
        first = size = 0
        for end, (_, count) in enumerate(runs, 1):
            size += count
            if end == len(runs) or size >= _TOGETHER:
                some = runs[first:end]
                yield some, *self.told(numbers_of(keys, some))
                first, size = end, 0

    def singles(self, count: int) -> tuple[Boundaries, ...]:
        """Return those of choices with one open key each, which together choose what this does.

        Args:
            count: Elements.
        """
        if len(self.open) < 2:
            return (self,)
        lower, upper = self.open
        return replace(self, open=(lower,), end=count), replace(self, open=(upper,), begin=0)
