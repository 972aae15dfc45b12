"""Exact order statistics in passes that count keys in brackets, each narrower than the last.

The bits of a floating-point number that is not negative, read as an integer, order as the number
does. Two passes find any rank of float32 values, four of float64 values. Where a sample tells in
which bracket a rank may be, one pass finds it, or finds that it is not there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shardmerge.methods.passes import NO_BAND, KeyBand, Ranks

_DIGIT = 18
#: Parts of a bracket that are counted where nothing is known.
BINS = 1 << _DIGIT
#: Where a sample tells of the bracket: parts at most, as bits, and elements for a part at least.
_FINEST, _EACH = 21, 8
#: Standard errors of a sample's quantile that a bracket has on either side, and keys besides.
_ERRORS, _MORE = 5, 64
#: Keys that are parted rather than compared again.
_FEW = 1 << 12
#: Counts keys: brackets -> for each how many keys lie below, and int64 [parts] in its parts.
CountKeys = Callable[[Sequence["Bracket"]], Sequence[tuple[int, np.ndarray]]]
#: Finds keys of one value: brackets -> for each how many keys lie below, and those that lie in any
#: of them; None if these are too many to be kept.
CatchKeys = Callable[[Sequence["Bracket"]], "tuple[Sequence[int], np.ndarray] | None"]
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
        parts: How many there are.
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
    caught: CatchKeys | None = None,
) -> list[int]:
    """Return the keys of one value that have some ranks.

    Args:
        ranks: From 0.
        count: Elements.
        bits: Of a key.
        counted: Passes over the elements.
        sample: Tells where ranks may be.
        caught: Passes over the elements once, if a sample tells of narrow brackets.
    """
    found = _statistics([(0, rank) for rank in ranks], count, bits, counted, sample, caught)
    return [one.key for one in found]


def _statistics(
    wanted: Sequence[tuple[int, int]],
    count: int,
    bits: int,
    counted: CountKeys,
    sample: Sample | None,
    caught: CatchKeys | None = None,
) -> list[Statistic]:
    """Return the elements of some ranks: (value's number, rank from the least)."""
    whole = max(0, bits - 1 - _DIGIT)
    ranks = Counter(k for k, _ in wanted)
    known = {k: _in_order(sample(k), ranks[k]) for k in ranks} if sample else {}
    open_ = {
        one: guess(*one, count, bits, *known[one[0]]) if known else Bracket(one[0], 0, whole)
        for one in wanted
    }
    found: dict[tuple[int, int], Statistic] = {}
    if known and caught:
        brackets = sorted(set(open_.values()))
        if some := caught(brackets):
            below = dict(zip(brackets, some[0], strict=True))
            found = _among(some[1], {one: (own, below[own]) for one, own in open_.items()})
            open_ = {one: Bracket(one[0], 0, whole) for one in open_ if one not in found}
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


def _among(
    keys: np.ndarray, wanted: Mapping[tuple[int, int], tuple[Bracket, int]]
) -> dict[tuple[int, int], Statistic]:
    """Return the elements of ranks that are among the keys in brackets.

    Args:
        keys: That lie in brackets, in any order.
        wanted: For each rank its bracket, and how many keys lie below that.
    """
    found = {}
    for one, (bracket, below) in wanted.items():
        low, high = bracket.low, bracket.low + (bracket.parts << bracket.shift)
        begin, end = (int(np.count_nonzero(keys < key)) for key in (low, high))
        others = below - begin
        place = one[1] - others
        if not begin <= place < end:
            continue
        # to compare all a few times is less work than to part them
        while end - begin > _FEW and high - low > 1:
            middle = (low + high) // 2
            number = int(np.count_nonzero(keys < middle))
            if number <= place:
                low, begin = middle, number
            else:
                high, end = middle, number
        own = keys[(keys >= low) & (keys < high)]
        key = np.partition(own, place - begin)[place - begin]
        before, equal = (int(np.count_nonzero(mask)) for mask in (own < key, own == key))
        found[one] = Statistic(int(key), others + begin + before, equal)
    return found


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


def _in_order(sample: np.ndarray, ranks: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a sample, its keys, and whether they are in order: where several ranks are wanted."""
    keys = sample.reshape(-1)
    return sample, np.sort(keys) if ranks > 1 else keys, ranks > 1


def guess(
    k: int,
    rank: int,
    count: int,
    bits: int,
    sample: np.ndarray,
    keys: np.ndarray,
    ordered: bool = False,
) -> Bracket:
    """Return the bracket in which a rank nearly always is, by a sample of keys.

    Args:
        k: Number of the value.
        rank: From the least.
        count: Elements.
        bits: Of a key.
        sample: Keys of some elements, [runs, elements]; runs may differ from each other.
        keys: The same in any order.
        ordered: They are in order, so that they need not be parted.
    """

    def parted(keys: np.ndarray, place: int) -> np.ndarray:
        return keys if ordered else np.partition(keys, place)

    number = sample.size
    place = rank * number // count
    keys = parted(keys, place)
    share = (sample < keys[place]).mean(axis=1)
    apart = math.ceil(_ERRORS * share.std() / math.sqrt(len(share)) * number) + _MORE
    low, high = 0, (1 << (bits - 1)) - 1
    if place >= apart:
        low = int(parted(keys[: place + 1], place - apart)[place - apart])
    if place + apart < number:
        high = int(parted(keys[place:], apart)[apart])
    finest = min(max(_DIGIT, (count // _EACH).bit_length() - 1), _FINEST)
    shift = max(0, (high - low).bit_length() - finest)
    return Bracket(k, low, shift, ((high - low) >> shift) + 1)
