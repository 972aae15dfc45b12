"""Exact order statistics in passes that count keys in brackets, each narrower than the last.

The bits of a floating-point number that is not negative, read as an integer, order as the number
does. Two passes find any rank of float32 values, four of float64 values. Where a sample tells in
which bracket a rank may be, one pass finds it, or finds that it is not there.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import NO_BAND, KeyBand, Masks, Ranks, RowChances

#: Groups of rows whose masks are always kept: threads work on few at a time.
_REMEMBERED = 4
#: Returns which elements of rows are chosen, bool: (values, numbers), each [rows, length].
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]
_HALF = 16
_DIGIT = 18
#: Parts of a bracket that may be counted.
BINS = 1 << _DIGIT
#: Standard errors of a sample's quantile that a bracket has on either side, and keys besides.
_ERRORS, _MORE = 5, 64
#: Counts keys: brackets -> for each how many keys lie below, and int64 [parts] in its parts.
CountKeys = Callable[[Sequence["Bracket"]], Sequence[tuple[int, np.ndarray]]]
#: Returns the keys of some elements of a value, [runs, elements]: those of a run lie together.
Sample = Callable[[int], "np.ndarray"]
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


@dataclass(frozen=True, order=True)
class Bracket:
    """Keys among which some rank is looked for.

    Args:
        value: Number of the value that they are of.
        low: The least.
        shift: A part has 2**shift keys.
        parts: How many there are, at most BINS.
    """

    value: int
    low: int
    shift: int
    parts: int = BINS


def find_bands(
    ranks: Sequence[Ranks],
    count: int,
    bits: int,
    counted: CountKeys,
    locate: Locate,
    sample: Sample | None = None,
) -> list[KeyBand]:
    """Return the band of each value's ranks.

    Args:
        ranks: Of each value.
        count: Elements.
        bits: Of a key.
        counted, locate: Pass over the elements.
        sample: Tells where ranks may be.
    """
    ranks = [Ranks(one.start, min(one.stop, count), one.descending) for one in ranks]
    # of the first rank of all and of the last the keys need not be looked for: none lies beyond
    ends = {
        (k, last): rank
        for k, one in enumerate(ranks)
        if one.start < one.stop
        for last, rank in ((False, one.start), (True, one.stop - 1))
    }
    wanted = {
        end: (end[0], count - 1 - rank if ranks[end[0]].descending else rank)
        for end, rank in ends.items()
        if rank != (count - 1 if end[1] else 0)
    }
    found = _statistics(list(wanted.values()), count, bits, counted, sample)
    known = dict(zip(wanted, found, strict=True))

    def statistic(k: int, last: bool) -> Statistic:
        descending = ranks[k].descending
        if (k, last) in known:
            one = known[k, last]
            return replace(one, before=count - one.before - one.equal) if descending else one
        key = (1 << (bits - 1)) - 1 if descending != last else 0
        other = known.get((k, not last))
        if other and other.key == key:
            return statistic(k, not last)
        return Statistic(key, count if last else 0, 0)

    return [
        band_of(one, statistic(k, False), statistic(k, True), partial(locate, k))
        if one.start < one.stop
        else NO_BAND
        for k, one in enumerate(ranks)
    ]


def find_keys(
    ranks: Sequence[int],
    count: int,
    bits: int,
    counted: CountKeys,
    sample: Sample | None = None,
) -> list[int]:
    """Return the keys of one value that have some ranks.

    Args:
        ranks: From 0.
        count: Elements.
        bits: Of a key.
        counted: Passes over the elements.
        sample: Tells where ranks may be.
    """
    found = _statistics([(0, rank) for rank in ranks], count, bits, counted, sample)
    return [one.key for one in found]


def _statistics(
    wanted: Sequence[tuple[int, int]],
    count: int,
    bits: int,
    counted: CountKeys,
    sample: Sample | None,
) -> list[Statistic]:
    """Return the elements of some ranks: (value's number, rank from the least)."""
    whole = max(0, bits - 1 - _DIGIT)
    known = {k: sample(k) for k in {k for k, _ in wanted}} if sample else {}
    open_ = {
        one: guess(*one, count, bits, known[one[0]]) if known else Bracket(one[0], 0, whole)
        for one in wanted
    }
    found: dict[tuple[int, int], Statistic] = {}
    while open_:
        brackets = sorted(set(open_.values()))
        answers = dict(zip(brackets, counted(brackets), strict=True))
        for one, bracket in list(open_.items()):
            next_ = narrowed(bracket, one[1], *answers[bracket])
            if isinstance(next_, Statistic):
                found[one] = next_
                del open_[one]
            else:
                open_[one] = next_ or Bracket(one[0], 0, whole)
    return [found[one] for one in wanted]


def narrowed(
    bracket: Bracket, rank: int, below: int, table: np.ndarray
) -> Statistic | Bracket | None:
    """Return the element of a rank, the part of a bracket that has it, or None if none has.

    Args:
        bracket: Where it is looked for.
        rank: From the least.
        below: How many keys lie below the bracket.
        table: How many lie in its parts.
    """
    upto = table.cumsum()
    if not 0 <= rank - below < upto[-1]:
        return None
    part = int(np.searchsorted(upto, rank - below, side="right"))
    low, equal = bracket.low + (part << bracket.shift), int(table[part])
    if bracket.shift == 0:
        return Statistic(low, below + int(upto[part]) - equal, equal)
    shift = max(0, bracket.shift - _DIGIT)
    return Bracket(bracket.value, low, shift, 1 << (bracket.shift - shift))


def guess(k: int, rank: int, count: int, bits: int, sample: np.ndarray) -> Bracket:
    """Return the bracket in which a rank nearly always is, by a sample of keys.

    Args:
        k: Number of the value.
        rank: From the least.
        count: Elements.
        bits: Of a key.
        sample: Keys of some elements, [runs, elements]; runs may differ from each other.
    """
    keys = np.sort(sample, axis=None)
    place = rank * len(keys) // count
    share = (sample < keys[place]).mean(axis=1)
    apart = math.ceil(_ERRORS * share.std() / math.sqrt(len(share)) * len(keys)) + _MORE
    low = int(keys[place - apart]) if place >= apart else 0
    high = int(keys[place + apart]) if place + apart < len(keys) else (1 << (bits - 1)) - 1
    shift = max(0, (high - low).bit_length() - _DIGIT)
    return Bracket(k, low, shift, ((high - low) >> shift) + 1)


class _Kept:
    """Masks of groups of rows: of earlier tensors, then of the last, as many as there is room for.

    Of a tensor that is too large the first stay: they are asked for first again.
    """

    def __init__(self, room: int) -> None:
        self._room, self._size = room, 0
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()

    def get(self, tensor: int, begin: int) -> list[np.ndarray] | None:
        """Return the masks of a group, None if they are not kept."""
        with self._lock:
            return self._found.get((tensor, begin))

    def put(self, tensor: int, begin: int, masks: list[np.ndarray]) -> None:
        """Keep the masks of a group."""
        with self._lock:
            if (tensor, begin) in self._found:
                return
            self._found[tensor, begin] = masks
            self._size += sum(mask.nbytes for mask in masks)
            while self._size > self._room and len(self._found) > _REMEMBERED:
                group = next(iter(self._found))
                if group[0] == tensor:
                    group = list(self._found)[-_REMEMBERED]
                self._size -= sum(mask.nbytes for mask in self._found.pop(group))


#: 64 MiB.
_KEPT = _Kept(1 << 26)
_NUMBERS = itertools.count()


class RowMasks:
    """The masks of what is chosen by ranks in rows, found where they are asked for, and kept.

    Args:
        values: Returns consecutive values of each kind: (first, count).
        wanted: What is chosen.
        shape: Of the tensor.
        choose: Finds for each kind the masks of rows, by their values and numbers.
        together: Elements of rows that are looked at together, if rows are shorter.
    """

    def __init__(
        self,
        values: Callable[[int, int], Sequence[np.ndarray]],
        wanted: RowChances,
        shape: Sequence[int],
        choose: Sequence[Choose],
        together: int = BLOCK,
    ) -> None:
        self._values, self._numbers, self._choose = values, wanted.numbers, choose
        self._length = shape[1] if len(shape) > 1 else math.prod(shape)
        self._inner = math.prod(shape[2:])
        self._count = math.prod(shape)
        row = self._length * self._inner
        self._step = row * max(1, together // max(row, 1))
        self._number = next(_NUMBERS)

    def masks(self) -> list[Masks]:
        """Return the mask of each kind of values."""
        return [partial(self._mask, kind) for kind in range(len(self._choose))]

    def _mask(self, kind: int, first: int, count: int) -> np.ndarray:
        spans = range(first // self._step * self._step, first + count, self._step)
        parts = []
        for begin in spans:
            start, stop = max(begin, first), min(begin + self._step, first + count)
            bits = self._rows(begin)[kind][(start - begin) // 8 : -(-(stop - begin) // 8)]
            skip = (start - begin) % 8
            parts.append(np.unpackbits(bits)[skip : skip + stop - start].view(bool))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, begin: int) -> list[np.ndarray]:
        """Return the masks of some whole rows, 8 elements a byte."""
        if (known := _KEPT.get(self._number, begin)) is not None:
            return known
        size = min(self._step, self._count - begin)
        values = self._values(begin, size)
        found = [
            np.packbits(self._flat(choose(self._lines(value), self._lines(number(begin, size)))))
            for value, number, choose in zip(values, self._numbers, self._choose, strict=True)
        ]
        _KEPT.put(self._number, begin, found)
        return found

    def _lines(self, x: np.ndarray) -> np.ndarray:
        """Return elements as rows that follow each other, [rows, length]."""
        if self._inner > 1:
            x = x.reshape(-1, self._length, self._inner).swapaxes(1, 2)
        return np.ascontiguousarray(x).reshape(-1, self._length)

    def _flat(self, rows: np.ndarray) -> np.ndarray:
        """Return what belongs to rows in the order of elements."""
        if self._inner > 1:
            rows = rows.reshape(-1, self._inner, self._length).swapaxes(1, 2)
        return rows.reshape(-1)


def choice_by(ranks: Callable[[np.ndarray], np.ndarray], bounds: np.ndarray) -> Choose:
    """Return what chooses by ranks.

    Args:
        ranks: Finds those of values within rows.
        bounds: By rank, what numbers of the chosen are below.
    """
    return lambda values, numbers: numbers < bounds[ranks(values)]


def ranks_along(values: np.ndarray) -> np.ndarray:
    """Return the ranks along rows, [rows, length]; of equal values the first has the lowest."""
    order = _order(values)
    ranks = np.empty_like(order)
    steps = np.arange(values.shape[1])[None]
    np.put_along_axis(ranks, order, np.broadcast_to(steps, order.shape), axis=1)
    return ranks


def _order(values: np.ndarray) -> np.ndarray:
    """Return what sorts values that are not negative along rows, stably."""
    if values.dtype != np.float32:
        return np.argsort(values, axis=1, kind="stable")
    # numpy sorts numbers of 16 bits by their digits, a third of the time: by the low half first
    keys = np.ascontiguousarray(values).view(np.uint32)
    order = np.argsort(keys.astype(np.uint16), axis=1, kind="stable")
    high = np.take_along_axis((keys >> _HALF).astype(np.uint16), order, axis=1)
    return np.take_along_axis(order, np.argsort(high, axis=1, kind="stable"), axis=1)
