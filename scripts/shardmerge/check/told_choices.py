"""Choices by torch's sort as a record tells them: verified thresholds, and bits at those."""

from __future__ import annotations

import base64
import binascii
import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardmerge.algebra.samples import Runs
from shardmerge.engine.choice_bounds import Boundaries, KeysOf
from shardmerge.engine.telling import Side, sides_of
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import GREATEST_KEY, KeyBand, Ranks

_NOWHERE = (0, 0)


@dataclass(frozen=True)
class ToldRow:
    """What is recorded of the choice by one value.

    Args:
        ranks: That are chosen.
        low, high: The keys between which they lie.
        text: Which of the elements that have one of these keys are chosen, of some.
    """

    ranks: Ranks
    low: int
    high: int
    text: str

    @property
    def band(self) -> KeyBand:
        """The keys, without the elements at either end."""
        return KeyBand(self.low, self.high, _NOWHERE, _NOWHERE)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is chosen."""
        return self.ranks.start >= self.ranks.stop

    def limits(self, count: int) -> Boundaries:
        """Return what is chosen for sure of so many elements, at least one of which is."""
        return Boundaries.of(self.ranks, count, self.low, self.high)

    def is_counted(self, count: int) -> bool:
        """Whether as many of so many elements as it has ranks are chosen only by right thresholds.

        Which zeros are chosen is not told.
        """
        if self.is_empty:
            return True
        limits = self.limits(count)
        return (limits.begin, limits.end) == (self.ranks.start, self.ranks.stop)

    def sides(self, count: int) -> list[Side]:
        """Return what must be so of the keys among so many elements."""
        return sides_of(self.ranks, self.low, self.high, count)


def told_rows(known: Any, ranks: Sequence[Ranks]) -> list[ToldRow] | None:
    """Return what is recorded of a choice, None where that has another form."""
    if not isinstance(known, list) or len(known) != len(ranks):
        return None
    rows = []
    for row, own in zip(known, ranks, strict=True):
        if not isinstance(row, list) or [type(one) for one in row] != [int, int, str]:
            return None
        if not all(0 <= key <= GREATEST_KEY for key in row[:2]):
            return None
        rows.append(ToldRow(own, *row))
    return rows


class ToldMask:
    """The mask of what is chosen, of elements that a record tells of; of others it is found.

    Args:
        known: Masks of runs, by their first elements, and how many elements they have.
        whole: Finds the mask of all.
    """

    def __init__(self, known: dict[int, tuple[BitMask, int]], whole: Callable[[], BitMask]) -> None:
        self._known, self._whole = known, whole
        self._starts = sorted(known)
        self._found: BitMask | None = None

    @classmethod
    def of(
        cls, row: ToldRow, keys: KeysOf, runs: Runs, count: int, whole: Callable[[], BitMask]
    ) -> ToldMask | None:
        """Return the mask that a row tells, None if it tells of more or fewer elements.

        Args:
            row: Its thresholds are verified.
            keys: Of elements.
            runs: That it tells of.
            count: Elements of the tensor.
            whole: Finds the mask of all.
        """
        if row.is_empty:
            return cls({}, whole)
        known: dict[int, tuple[BitMask, int]] = {}
        bits, done = _bits(row.text), 0
        if bits is None:
            return None
        for some, chosen, perhaps in row.limits(count).told_of(keys, runs):
            number = np.count_nonzero(perhaps)
            if done + number > len(bits):
                return None
            chosen[perhaps] = bits[done : done + number]
            done += number
            parts = np.split(chosen, np.cumsum([size for _, size in some])[:-1])
            for (first, size), part in zip(some, parts, strict=True):
                known[first] = BitMask.of(part), size
        return cls(known, whole) if -(-done // 8) == len(bits) // 8 else None

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return whether consecutive elements are chosen, as bits."""
        place = bisect.bisect_right(self._starts, first) - 1
        if place >= 0:
            begin = first - self._starts[place]
            mask, size = self._known[self._starts[place]]
            if begin + count <= size:
                return mask(begin, count)
        self._found = self._found or self._whole()
        return self._found(first, count)


def _bits(text: str) -> np.ndarray | None:
    try:
        data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (ValueError, binascii.Error):
        return None
    return np.unpackbits(data).view(bool)
