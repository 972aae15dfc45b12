"""Exact order statistics in passes that count keys in brackets, each narrower than the last.

The bits of a floating-point number that is not negative, read as an integer, order as the number
does. Two passes find any rank of float32 values, four of float64 values. Where a sample tells in
which bracket a rank may be, one pass finds it, or finds that it is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from shardmerge.methods.passes import NO_BAND, KeyBand, Ranks, RanksOf, ranks_of

_DIGIT = 18
#: Parts of a bracket that are counted where nothing is known.
BINS = 1 << _DIGIT
#: Where a sample tells of the bracket: parts at most, as bits, and elements for a part at least.
_FINEST, _EACH = 21, 8
#: Standard errors of a sample's quantile that a bracket has on either side, and keys besides.
_ERRORS, _MORE = 4, 64
#: Where a sample is counted: parts of all keys, as bits.
_COARSE = 16
#: Keys that are parted rather than compared again.
_FEW = 1 << 12
#: How often all are compared with a key that is likely, and which part of the keys that are left
#: lies between that and the one of this rank.
_GUESSED, _NEAR = 4, 128
#: Counts keys: brackets -> for each how many keys lie below, and int64 [parts] in its parts.
CountKeys = Callable[[Sequence["Bracket"]], Sequence[tuple[int, np.ndarray]]]
#: Finds keys: (brackets, how many are likely in them) -> for each bracket how many keys lie below
#: and those that lie in it, in any order; None if these are too many to be kept.
CatchKeys = Callable[[Sequence["Bracket"], int], "Sequence[tuple[int, np.ndarray]] | None"]
#: Returns the keys of some elements of a value, [runs, elements]: those of a run lie together.
Sample = Callable[[int], "np.ndarray"]
#: Finds the index of the element that is so manieth of a key: (value's number, key, number).
Locate = Callable[[int, int, int], int]
#: Returns the ranks that are looked for, each under a name: how many keys of some values are not 0
#: -> (value's number, rank from the least).
_Wanted = Callable[[Mapping[int, int]], "Mapping[Hashable, tuple[int, int]]"]


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

    @property
    def end(self) -> int:
        """The least key beyond it."""
        return self.low + (self.parts << self.shift)


@dataclass(frozen=True)
class KeyPasses:
    """Passes over the keys of some values.

    Args:
        count: Elements.
        bits: Of a key.
        counted: Counts keys.
        sample: Tells where ranks may be, if that is known.
        caught: Finds keys in one pass, if a sample tells of narrow brackets.
    """

    count: int
    bits: int
    counted: CountKeys
    sample: Sample | None = None
    caught: CatchKeys | None = None

    @property
    def greatest(self) -> int:
        """The greatest key."""
        return (1 << (self.bits - 1)) - 1

    def all_of(self, k: int) -> Bracket:
        """Return the bracket of all keys of a value."""
        return Bracket(k, 0, max(0, self.bits - 1 - _DIGIT))


def in_parts(parts: Iterable[Sequence[int]], number: int) -> int:
    """Return the one of some indices that has a number.

    Args:
        parts: The indices in ascending order, some at a time: arrays or tensors.
        number: From 0 on.

    Raises:
        ValueError: If there are not so many.
    """
    for own in parts:
        if number < len(own):
            return int(own[number])
        number -= len(own)
    raise ValueError("there are not so many")


def find_bands(
    ranks: Sequence[Ranks | RanksOf], passes: KeyPasses, locate: Locate
) -> tuple[list[KeyBand], dict[int, int]]:
    """Return the band of each value's ranks, and how many of a value are not 0 where ranks ask.

    Args:
        ranks: Of each value.
        passes: Over the keys.
        locate: Passes over the elements.
    """
    count = passes.count

    def ends(nonzero: Mapping[int, int]) -> dict[tuple[int, bool], tuple[int, int]]:
        exact = [ranks_of(one, count, nonzero.get(k)) for k, one in enumerate(ranks)]
        return {
            (k, last): (k, count - 1 - rank if one.descending else rank)
            for k, one in enumerate(exact)
            if one.start < one.stop
            for last, rank in ((False, one.start), (True, one.stop - 1))
            # of the first rank of all and of the last the keys need not be looked for: none lies
            # beyond
            if rank != (count - 1 if last else 0)
        }

    asking = [k for k, one in enumerate(ranks) if not isinstance(one, Ranks)]
    known, nonzero = _statistics(ends, asking, passes)
    exact = [ranks_of(one, count, nonzero.get(k)) for k, one in enumerate(ranks)]

    def statistic(k: int, last: bool) -> Statistic:
        descending = exact[k].descending
        if (k, last) in known:
            one = known[k, last]
            return replace(one, before=count - one.before - one.equal) if descending else one
        key = passes.greatest if descending != last else 0
        other = known.get((k, not last))
        if other and other.key == key:
            return statistic(k, not last)
        return Statistic(key, count if last else 0, 0)

    bands = [
        band_of(one, statistic(k, False), statistic(k, True), partial(locate, k))
        if one.start < one.stop
        else NO_BAND
        for k, one in enumerate(exact)
    ]
    return bands, nonzero


def find_keys(ranks: Sequence[int], passes: KeyPasses) -> list[int]:
    """Return the keys of one value that have some ranks.

    Args:
        ranks: From 0.
        passes: Over the keys.
    """
    found, _ = _statistics(lambda _: {rank: (0, rank) for rank in ranks}, (), passes)
    return [found[rank].key for rank in ranks]


def _statistics(
    wanted_of: _Wanted, asking: Sequence[int], passes: KeyPasses
) -> tuple[dict[Any, Statistic], dict[int, int]]:
    """Return the elements of some ranks, and how many of some values are not 0.

    Args:
        wanted_of: Returns the ranks.
        asking: Numbers of the values of which it asks how many are not 0.
        passes: Over the keys.
    """
    likely, expected = _likely(wanted_of, asking, passes)
    # a bracket of no key: below it lie zeros
    zeros = {k: Bracket(k, 1, 0, 0) for k in asking}
    brackets = sorted({*likely.values(), *zeros.values()})
    kept = passes.caught(brackets, expected) if passes.caught and brackets else None
    seen = dict(zip(brackets, kept or passes.counted(brackets), strict=True)) if brackets else {}
    nonzero = {k: passes.count - seen[one][0] for k, one in zeros.items()}
    wanted = wanted_of(nonzero)
    open_ = {name: likely.get(name, passes.all_of(k)) for name, (k, _) in wanted.items()}
    found: dict[Any, Statistic] = {}
    look = _among if kept else narrowed
    while open_:
        for name in [name for name, one in open_.items() if one in seen]:
            k, rank = wanted[name]
            next_ = look(open_[name], rank, *seen[open_[name]])
            if isinstance(next_, Statistic):
                found[name] = next_
                del open_[name]
            else:
                open_[name] = next_ or passes.all_of(k)
        look, brackets = narrowed, sorted(set(open_.values()))
        seen = dict(zip(brackets, passes.counted(brackets), strict=True)) if brackets else {}
    return found, nonzero


def _likely(
    wanted_of: _Wanted, asking: Sequence[int], passes: KeyPasses
) -> tuple[dict[Any, Bracket], int]:
    """Return the brackets in which ranks likely are, and how many keys likely lie in them."""
    count = passes.count
    if not passes.sample:
        some = wanted_of(dict.fromkeys(asking, count))
        return {name: passes.all_of(k) for name, (k, _) in some.items()}, count
    shares = {k: (passes.sample(k) != 0).mean(axis=1) for k in asking}
    wanted = wanted_of({k: round(one.mean() * count) for k, one in shares.items()})
    known = {k: passes.sample(k) for k in dict.fromkeys(k for k, _ in wanted.values())}
    upto = {k: counted_coarsely(one, passes.bits) for k, one in known.items()}
    # each run tells of other numbers that are not 0, and so of other ranks
    told = zip(*((share * count).round() for share in shares.values()), strict=True)
    runs = [wanted_of(dict(zip(asking, map(int, one), strict=True))) for one in told]

    def likely_one(name: Hashable, k: int, rank: int) -> Bracket:
        ranks = [one.get(name, (k, rank))[1] / count for one in runs if k in shares]
        return guess(k, rank, count, passes.bits, known[k], upto[k], ranks)

    likely = {name: likely_one(name, *one) for name, one in wanted.items()}
    inside = sum(_share(one, upto[one.value], passes.bits) for one in {*likely.values()})
    return likely, round(inside * count)


def among_all(keys: np.ndarray, bracket: Bracket) -> tuple[int, np.ndarray]:
    """Return how many keys of a value lie below a bracket, and those that lie in it."""
    below = int(np.count_nonzero(keys < bracket.low))
    return below, keys[(keys >= bracket.low) & (keys < bracket.end)]


def _among(bracket: Bracket, rank: int, below: int, keys: np.ndarray) -> Statistic | None:
    """Return the element of a rank that is among the keys in a bracket, None if it is not.

    Args:
        bracket: Where it is looked for.
        rank: From the least.
        below: How many keys lie below the bracket.
        keys: That lie in it, in any order.
    """
    place = rank - below
    if not 0 <= place < len(keys):
        return None
    low, high, begin, end = bracket.low, bracket.end, 0, len(keys)
    # to compare all a few times is less work than to part them; mostly they lie about evenly, and
    # so first with a key a little before that which is likely, then with one behind it
    turn, side = 0, -1
    while end - begin > _FEW and high - low > 1:
        middle = (low + high) // 2
        if turn < _GUESSED:
            likely = low + (high - low) * (place - begin) // (end - begin)
            middle = likely + side * ((high - low) // _NEAR)
            middle = min(max(middle, low + 1), high - 1)
        number = int(np.count_nonzero(keys < middle))
        if number <= place:
            low, begin, side = middle, number, 1
        else:
            high, end, side = middle, number, -1
        turn += 1
    own = keys[(keys >= low) & (keys < high)]
    key = int(np.partition(own, place - begin)[place - begin])
    before, equal = (int(np.count_nonzero(mask)) for mask in (own < key, own == key))
    return Statistic(key, below + begin + before, equal)


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


def guess(
    k: int,
    rank: int,
    count: int,
    bits: int,
    sample: np.ndarray,
    upto: np.ndarray,
    ranks: Sequence[float] = (),
) -> Bracket:
    """Return the bracket in which a rank nearly always is, by a sample of keys.

    Args:
        k: Number of the value.
        rank: From the least.
        count: Elements.
        bits: Of a key.
        sample: Keys of some elements, [runs, elements]; runs may differ from each other.
        upto: Of the sample's keys, by ``counted_coarsely``.
        ranks: What each run tells of the rank, as a share of the elements, if runs differ in that.
    """
    number, coarse = sample.size, _coarse(bits)
    place = rank * number // count
    part = int(np.searchsorted(upto, place, side="right"))
    own = np.array(ranks) if ranks else 0.0
    ends = ((part + more) << coarse for more in (0, 1))
    # a rank may be near either end of its part
    spread = max((_counted(sample < end) / sample.shape[1] - own).std() for end in ends)
    apart = math.ceil(_ERRORS * spread / math.sqrt(len(sample)) * number) + _MORE
    low, high = 0, (1 << (bits - 1)) - 1
    if place >= apart:
        low = int(np.searchsorted(upto, place - apart, side="right")) << coarse
    if place + apart < number:
        high = (int(np.searchsorted(upto, place + apart, side="right")) + 1 << coarse) - 1
    finest = min(max(_DIGIT, (count // _EACH).bit_length() - 1), _FINEST)
    shift = max(0, (high - low).bit_length() - finest)
    return Bracket(k, low, shift, ((high - low) >> shift) + 1)


def _counted(mask: np.ndarray) -> np.ndarray:
    """Return how often each row of a mask is set, in a fifth of the time that numpy takes."""
    length = mask.shape[1]
    if length % 8:
        return np.count_nonzero(mask, axis=1)
    # eight counts in each word, none of which passes 255
    words = mask.view(np.uint64)
    counts = np.add.reduceat(words, range(0, length // 8, 255), axis=1)
    return counts.view(np.uint8).sum(axis=1, dtype=np.int64)


def counted_coarsely(sample: np.ndarray, bits: int) -> np.ndarray:
    """Return how many keys there are up to each part of all, int64 [parts].

    It takes a twentieth of the time of putting them in order.
    """
    parts = sample.reshape(-1) >> _coarse(bits)
    return np.bincount(parts, minlength=1 << _COARSE).cumsum()


def _share(bracket: Bracket, upto: np.ndarray, bits: int) -> float:
    """Return about which share of a sample's keys lie in a bracket."""
    low, end = bracket.low >> _coarse(bits), -(-bracket.end >> _coarse(bits))
    before = upto[low - 1] if low else 0
    return float(upto[min(end, len(upto)) - 1] - before) / float(upto[-1])


def _coarse(bits: int) -> int:
    """Return the bits of the length of such a part."""
    return bits - 1 - _COARSE
