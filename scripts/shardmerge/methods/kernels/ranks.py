"""Exact order statistics in passes over histograms of keys, 16 bits a pass.

The bits of a floating-point number that is not negative, read as an integer, order as the number
does. Two passes find any rank of float32 values, four of float64 values.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import NO_BAND, KeyBand, Masks, Ranks

_DIGIT = 16
#: Groups of rows whose ranks are kept: threads work on few at a time.
_REMEMBERED = 4
#: Elements of a tensor of which a mask is kept: 32 MiB.
_KEPT = 1 << 28
#: Counts the digits of keys with some higher digits: (bits to the right of the digit, pairs of a
#: value's number and its higher digits) -> int64 [65536] for each pair.
Histograms = Callable[[int, Sequence[tuple[int, int]]], Sequence[np.ndarray]]
#: Finds the index of the element that is so manieth of a key: (value's number, key, number).
Locate = Callable[[int, int, int], int]


@dataclass(frozen=True)
class Statistic:
    """An element of some rank.

    Args:
        key: Its key.
        before: How many elements of another key have lower ranks.
        equal: How many have its key.
    """

    key: int
    before: int
    equal: int


def band_of(
    ranks: Ranks, first: Statistic, last: Statistic, locate: Callable[[int, int], int]
) -> KeyBand:
    """Return the band between the elements of the first and of the last of some ranks.

    Args:
        ranks: At least one.
        first, last: The elements with ranks ``start`` and ``stop - 1``.
        locate: Returns the index of the element that is so manieth of a key: (key, number).
    """

    def range_of(one: Statistic) -> tuple[int, int]:
        begin, end = ranks.start - one.before, ranks.stop - one.before
        return (
            0 if begin <= 0 else locate(one.key, begin),
            1 << 62 if end >= one.equal else locate(one.key, end),
        )

    ends = range_of(first), range_of(last)
    if ranks.descending:
        return KeyBand(last.key, first.key, *ends[::-1])
    return KeyBand(first.key, last.key, *ends)


def find_bands(
    ranks: Sequence[Ranks], count: int, bits: int, histograms: Histograms, locate: Locate
) -> list[KeyBand]:
    """Return the band of each value's ranks.

    Args:
        ranks: Of each value.
        count: Elements.
        bits: Of a key.
        histograms, locate: Pass over the elements.
    """
    ranks = [Ranks(one.start, min(one.stop, count), one.descending) for one in ranks]
    wanted = [
        (k, rank, one.descending)
        for k, one in enumerate(ranks)
        if one.start < one.stop
        for rank in (one.start, one.stop - 1)
    ]
    found = iter(_statistics(wanted, bits, histograms))
    return [
        band_of(one, next(found), next(found), partial(locate, k))
        if one.start < one.stop
        else NO_BAND
        for k, one in enumerate(ranks)
    ]


def find_keys(ranks: Sequence[int], bits: int, histograms: Histograms) -> list[int]:
    """Return the keys of one value that have some ranks.

    Args:
        ranks: From 0.
        bits: Of a key.
        histograms: Passes over the elements.
    """
    found = _statistics([(0, rank, False) for rank in ranks], bits, histograms)
    return [one.key for one in found]


def _statistics(
    wanted: Sequence[tuple[int, int, bool]], bits: int, histograms: Histograms
) -> list[Statistic]:
    """Return the elements of some ranks: (value's number, rank, whether from the greatest)."""
    found = [Statistic(0, 0, count) for count in [0] * len(wanted)]
    for shift in range(bits - _DIGIT, -1, -_DIGIT) if wanted else ():
        pairs = sorted({(k, one.key) for (k, _, _), one in zip(wanted, found, strict=True)})
        tables = dict(zip(pairs, histograms(shift, pairs), strict=True))
        for index, ((k, rank, descending), one) in enumerate(zip(wanted, found, strict=True)):
            table = tables[k, one.key][:: -1 if descending else 1]
            upto = table.cumsum()
            digit = int(np.searchsorted(upto, rank - one.before, side="right"))
            before = one.before + int(upto[digit] - table[digit])
            own = len(table) - 1 - digit if descending else digit
            found[index] = Statistic(one.key << _DIGIT | own, before, int(table[digit]))
    return found


class RanksInRows:
    """The ranks of values within their rows, found where they are asked for.

    Args:
        values: Returns consecutive values, not negative: (first, count).
        shape: Of the tensor.
        ranks: Finds the ranks along the second of three dimensions.
        together: Elements of rows that are sorted together, if rows are shorter.
    """

    def __init__(
        self,
        values: Callable[[int, int], np.ndarray],
        shape: Sequence[int],
        ranks: Callable[[np.ndarray], np.ndarray] | None = None,
        together: int = BLOCK,
    ) -> None:
        self._values, self._ranks = values, ranks or ranks_along
        self._length = shape[1] if len(shape) > 1 else math.prod(shape)
        self._inner = math.prod(shape[2:])
        self._count = math.prod(shape)
        row = self._length * self._inner
        self._step = row * max(1, together // row)
        self._lock = threading.Lock()
        self._found: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the ranks of consecutive elements, integers [count]."""
        spans = range(first // self._step * self._step, first + count, self._step)
        found = np.concatenate([self._rows(begin) for begin in spans])
        return found[first - spans.start :][:count]

    def _rows(self, begin: int) -> np.ndarray:
        """Return the ranks within some whole rows."""
        with self._lock:
            if begin in self._found:
                return self._found[begin]
        values = self._values(begin, min(self._step, self._count - begin))
        ranks = self._ranks(values.reshape(-1, self._length, self._inner)).reshape(-1)
        with self._lock:
            self._found[begin] = ranks
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return ranks


class KeptMask:
    """A mask that is found once and kept, a bit an element, where it is asked for more than once.

    Args:
        mask: Finds it, for consecutive elements.
        count: Elements of the tensor: of a larger one than ``_KEPT`` it is found each time.
    """

    def __init__(self, mask: Masks, count: int) -> None:
        self._mask, self._count = mask, count
        self._found: dict[int, np.ndarray] = {}

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the mask of consecutive elements, bool [count]."""
        if self._count > _KEPT:
            return self._mask(first, count)
        begins = range(first // BLOCK * BLOCK, first + count, BLOCK)
        tiles = np.concatenate([self._tile(begin) for begin in begins])
        return tiles[first - begins.start :][:count]

    def _tile(self, begin: int) -> np.ndarray:
        size = min(BLOCK, self._count - begin)
        if begin not in self._found:
            self._found[begin] = np.packbits(self._mask(begin, size))
        return np.unpackbits(self._found[begin], count=size).view(bool)


def ranks_along(values: np.ndarray) -> np.ndarray:
    """Return the ranks along the second dimension."""
    order = _order(values)
    ranks = np.empty_like(order)
    steps = np.arange(values.shape[1]).reshape(1, -1, 1)
    np.put_along_axis(ranks, order, np.broadcast_to(steps, order.shape), axis=1)
    return ranks


def _order(values: np.ndarray) -> np.ndarray:
    """Return what sorts values that are not negative along the second dimension, stably."""
    if values.dtype != np.float32:
        return np.argsort(values, axis=1, kind="stable")
    # numpy sorts numbers of 16 bits by their digits, a third of the time: by the low half first
    keys = np.ascontiguousarray(values).view(np.uint32)
    order = np.argsort(keys.astype(np.uint16), axis=1, kind="stable")
    high = np.take_along_axis((keys >> _DIGIT).astype(np.uint16), order, axis=1)
    return np.take_along_axis(order, np.argsort(high, axis=1, kind="stable"), axis=1)
