"""Masks of a tensor's elements as bits, found in groups where they are asked for, and kept.

The first of eight elements is the lowest bit of a byte.
"""

from __future__ import annotations

import abc
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import Chances, Masks, NumbersOf

#: Groups whose masks are always kept: threads work on few at a time.
_REMEMBERED = 4
_BYTE = 8
#: Bytes whose bits are counted at once.
_COUNTED = 1 << 20
#: The first of some elements that follow each other, and their number.
ElementSpan = tuple[int, int]
#: Finds the masks of spans of elements, one span after the other, as bits.
FindMasks = Callable[[Sequence[ElementSpan]], list[np.ndarray]]


def numbers_of(numbers: NumbersOf, spans: Sequence[ElementSpan]) -> np.ndarray:
    """Return the numbers of spans of elements, one after the other; together if that is known."""
    together = getattr(numbers, "of_spans", None)
    return together(spans) if together else in_one_array([numbers(*span) for span in spans])


def bits_of(mask: np.ndarray) -> np.ndarray:
    """Return the bits of a mask, bool [elements]."""
    return np.packbits(mask, bitorder="little")


def mask_of(bits: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of bits, bool [count]."""
    return np.unpackbits(bits, count=count, bitorder="little").view(bool)


def in_one_array(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays one after the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class Below:
    """The mask of elements whose numbers are below a bound.

    Args:
        numbers: Of the elements.
        bound: Of the numbers.
    """

    numbers: NumbersOf
    bound: int

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the bits of consecutive elements, uint8."""
        return bits_of(self.numbers(first, count) < self.bound)


class AnyBytes(Protocol):
    """Bytes in memory or in a file."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Return bytes that follow each other, uint8."""


@dataclass(frozen=True)
class BitMask:
    """A mask of which the bits of all elements are held.

    Args:
        bits: Of the elements.
    """

    bits: AnyBytes

    @classmethod
    def of(cls, mask: np.ndarray) -> BitMask:
        """Return that of a mask, bool [elements]."""
        return cls(bits_of(mask))

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the bits of consecutive elements, uint8."""
        part = self.bits[first // _BYTE : -(-(first + count) // _BYTE)]
        return _moved(part, first % _BYTE)

    def number(self, count: int) -> int:
        """Return how many of the first elements are set."""
        whole, rest = divmod(count, _BYTE)
        last = int(self.bits[whole : whole + 1][0]) & (1 << rest) - 1 if rest else 0
        ends = [*range(0, whole, _COUNTED), whole]
        parts = (self.bits[first:end] for first, end in itertools.pairwise(ends))
        return sum(int(np.bitwise_count(part).sum()) for part in parts) + last.bit_count()


def chance_masks(wanted: Chances) -> list[Below]:
    """Return the masks of what is chosen by chance."""
    return [Below(*pair) for pair in zip(wanted.numbers, wanted.bounds, strict=True)]


class _Kept:
    """Masks of groups: of earlier tensors, then of the last, as many as there is room for.

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


class FoundMasks(abc.ABC):
    """Masks of a tensor, found for whole groups of elements.

    Args:
        find: Finds those of some groups.
        step: Elements of a group.
        count: Of the tensor.
    """

    def __init__(self, find: FindMasks, step: int, count: int) -> None:
        self._find, self._step, self._count = find, step, count

    def masks(self, kinds: int) -> list[Masks]:
        """Return each mask of so many."""
        return [FoundMask(self, kind) for kind in range(kinds)]

    @abc.abstractmethod
    def of_runs(self, kind: int, runs: Sequence[ElementSpan]) -> list[np.ndarray]:
        """Return the bits of a mask for each of some runs of elements."""

    def joined(self, kind: int, runs: Sequence[ElementSpan]) -> np.ndarray:
        """Return a mask, bool, of the elements of some runs, one run after the other."""
        parts = zip(self.of_runs(kind, runs), runs, strict=True)
        return np.concatenate([mask_of(bits, run[1]) for bits, run in parts])


class SpanMasks(FoundMasks):
    """Masks of which few groups are asked for: those of the last runs are kept."""

    _runs: Sequence[ElementSpan] = ()

    def of_runs(self, kind: int, runs: Sequence[ElementSpan]) -> list[np.ndarray]:
        self._find_all(runs)
        pairs = zip(self._placed(runs), runs, strict=True)
        return [self._masks[kind](place, count) for place, (_, count) in pairs]

    def joined(self, kind: int, runs: Sequence[ElementSpan]) -> np.ndarray:
        self._find_all(runs)
        if kind not in self._in_runs:  # float64 and float32 are made by the same
            whole = mask_of(self._masks[kind](0, self._places[-1]), self._places[-1])
            pairs = zip(self._placed(runs), runs, strict=True)
            self._in_runs[kind] = np.concatenate(
                [whole[place : place + count] for place, (_, count) in pairs]
            )
        return self._in_runs[kind]

    def _find_all(self, runs: Sequence[ElementSpan]) -> None:
        """Find the masks of the groups that runs touch, if they are not those that are kept."""
        if self._runs != runs:
            spans = self._spans(runs)
            self._begins = [first for first, _ in spans]
            self._places = [0, *itertools.accumulate(size for _, size in spans)]
            self._masks, self._in_runs, self._runs = self._found(spans), {}, runs

    def _spans(self, runs: Sequence[ElementSpan]) -> list[ElementSpan]:
        """Return the groups that runs touch, those that follow each other as one."""
        spans: list[ElementSpan] = []
        for first, count in sorted(runs):
            begin = first // self._step * self._step
            end = min(-(-(first + count) // self._step) * self._step, self._count)
            if spans and sum(spans[-1]) >= begin:
                end, begin = max(end, sum(spans[-1])), spans.pop()[0]
            spans.append((begin, end - begin))
        return spans

    def _found(self, spans: Sequence[ElementSpan]) -> list[BitMask]:
        """Return the masks of spans, one after the other.

        Those of a tile and of the rows that it begins and ends in are found at once.
        """
        most = (BLOCK // self._step + 2) * self._step
        chunks: list[list[ElementSpan]] = []
        sizes: list[int] = []
        for first, count in spans:
            for at in range(first, first + count, most):
                size = min(most, first + count - at)
                if not sizes or sizes[-1] + size > most:
                    chunks.append([])
                    sizes.append(0)
                chunks[-1].append((at, size))
                sizes[-1] += size
        made = zip(*map(self._find, chunks), strict=True)
        return [BitMask(_joined(parts, sizes)) for parts in made]

    def _placed(self, runs: Sequence[ElementSpan]) -> list[int]:
        """Return where the first bit of each run lies among those that are kept."""
        firsts = np.array([first for first, _ in runs])
        numbers = np.searchsorted(self._begins, firsts, side="right") - 1
        return (firsts + np.subtract(self._places[:-1], self._begins)[numbers]).tolist()


class KeptMasks(FoundMasks):
    """Masks that are found group by group, and kept, as all of a tensor will be asked for."""

    def __init__(self, find: FindMasks, step: int, count: int) -> None:
        super().__init__(find, step, count)
        self._number = next(_NUMBERS)

    def of_runs(self, kind: int, runs: Sequence[ElementSpan]) -> list[np.ndarray]:
        groups = [self._groups(*run) for run in runs]
        found = self._found(sorted(set().union(*groups)))
        pairs = zip(runs, groups, strict=True)
        return [self._cut(*run, {at: found[at][kind] for at in own}) for run, own in pairs]

    def _groups(self, first: int, count: int) -> range:
        return range(first // self._step * self._step, first + count, self._step)

    def _cut(self, first: int, count: int, found: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return the bits of elements by those of their groups."""
        step, end = self._step, first + count
        if step % _BYTE:
            spans = [(max(at, first) - at, min(at + step, end) - at) for at in found]
            pairs = zip(found.values(), spans, strict=True)
            parts = [mask_of(bits, stop)[start:] for bits, (start, stop) in pairs]
            return bits_of(np.concatenate(parts))
        begin = first // _BYTE
        parts = [
            bits[max(begin - at // _BYTE, 0) : -(-(min(at + step, end) - at) // _BYTE)]
            for at, bits in found.items()
        ]
        return _moved(in_one_array(parts), first % _BYTE)

    def _found(self, groups: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """Return the masks of groups; of those that lack many are found at once."""
        found = {at: _KEPT.get(self._number, at) for at in groups}
        lack, most = [at for at in groups if found[at] is None], max(1, BLOCK // self._step)
        for k in range(0, len(lack), most):
            found |= self._find_groups(lack[k : k + most])
        return found

    def _find_groups(self, groups: Sequence[int]) -> dict[int, list[np.ndarray]]:
        """Find the masks of groups, ascending, and keep them."""
        spans: list[ElementSpan] = []
        for at in groups:
            first = spans.pop()[0] if spans and sum(spans[-1]) == at else at
            spans.append((first, min(at + self._step, self._count) - first))
        masks = [BitMask(bits) for bits in self._find(spans)]
        found = {}
        for k, at in enumerate(groups):
            size = min(self._step, self._count - at)
            found[at] = [mask(k * self._step, size) for mask in masks]
            _KEPT.put(self._number, at, found[at])
        return found


@dataclass(frozen=True)
class FoundMask:
    """One of the masks that are found together.

    Args:
        of: Finds them.
        kind: Which of them.
    """

    of: FoundMasks
    kind: int

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the bits of consecutive elements, uint8."""
        (bits,) = self.of.of_runs(self.kind, [(first, count)])
        return bits


def mask_of_runs(mask: Masks, runs: Sequence[ElementSpan]) -> np.ndarray:
    """Return a mask, bool, of the elements of some runs, one run after the other."""
    if isinstance(mask, FoundMask):
        return mask.of.joined(mask.kind, runs)
    return np.concatenate([mask_of(mask(*run), run[1]) for run in runs])


def _joined(parts: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return bits one after the other, of so many elements each."""
    if all(size % _BYTE == 0 for size in sizes[:-1]):
        return in_one_array(parts)
    return bits_of(np.concatenate([mask_of(*one) for one in zip(parts, sizes, strict=True)]))


def _moved(bits: np.ndarray, places: int) -> np.ndarray:
    """Return bits without the first few, less than a byte."""
    if not places:
        return bits
    moved = bits >> places
    moved[:-1] |= bits[1:] << (_BYTE - places)
    return moved
