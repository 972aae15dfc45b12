"""Masks of a tensor's elements as bits, found in groups where they are asked for, and kept.

The first of eight elements is the lowest bit of a byte.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import Chances, Masks, NumbersOf

#: Groups whose masks are always kept: threads work on few at a time.
_REMEMBERED = 4
#: Of so few elements masks are not made in groups.
_FEW = 1 << 13
_BYTE = 8
#: Finds the masks of some elements, as bits: (first, count).
FindMasks = Callable[[int, int], list[np.ndarray]]


def bits_of(mask: np.ndarray) -> np.ndarray:
    """Return the bits of a mask, bool [elements]."""
    return np.packbits(mask, bitorder="little")


def mask_of(bits: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of bits, bool [count]."""
    return np.unpackbits(bits, count=count, bitorder="little").view(bool)


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


@dataclass(frozen=True)
class BitMask:
    """A mask of which the bits of all elements are held.

    Args:
        bits: Of the elements.
    """

    bits: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> BitMask:
        """Return that of a mask, bool [elements]."""
        return cls(bits_of(mask))

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the bits of consecutive elements, uint8."""
        part = self.bits[first // _BYTE : -(-(first + count) // _BYTE)]
        return _moved(part, first % _BYTE)


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


class KeptMasks:
    """Masks of a tensor, found group by group.

    Args:
        find: Finds those of a group.
        step: Elements of a group.
        count: Of the tensor.
        few: What finds each mask of few elements, where that takes no group.
    """

    def __init__(self, find: FindMasks, step: int, count: int, few: Sequence[Masks] = ()) -> None:
        self._find, self._step, self._count, self._few = find, step, count, few
        self._number = next(_NUMBERS)

    def masks(self, kinds: int) -> list[Masks]:
        """Return each mask of so many."""
        return [partial(self._mask, kind) for kind in range(kinds)]

    def _mask(self, kind: int, first: int, count: int) -> np.ndarray:
        if self._few and count < _FEW:
            return self._few[kind](first, count)
        step, end = self._step, first + count
        groups = range(first // step * step, end, step)
        self._find_together(groups)
        if step % _BYTE:
            spans = [(max(at, first) - at, min(at + step, end) - at) for at in groups]
            pairs = zip(groups, spans, strict=True)
            parts = [mask_of(self._group(at)[kind], stop)[start:] for at, (start, stop) in pairs]
            return bits_of(np.concatenate(parts))
        begin = first // _BYTE
        parts = [
            self._group(at)[kind][
                max(begin - at // _BYTE, 0) : -(-(min(at + step, end) - at) // _BYTE)
            ]
            for at in groups
        ]
        bits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return _moved(bits, first % _BYTE)

    def _find_together(self, groups: range) -> None:
        """Find the masks of small groups that follow each other at once, as far as they lack."""
        most = max(1, BLOCK // self._step)
        for first in groups[::most] if most > 1 else ():
            some = range(first, min(first + most * self._step, groups.stop), self._step)
            lack = [at for at in some if _KEPT.get(self._number, at) is None]
            if len(lack) < 2:
                continue
            begin, end = lack[0], min(lack[-1] + self._step, self._count)
            for at, masks in self._split(begin, self._find(begin, end - begin), end):
                _KEPT.put(self._number, at, masks)

    def _split(
        self, begin: int, masks: Sequence[np.ndarray], end: int
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield the masks of each of some groups: (first element, masks)."""
        for at in range(begin, end, self._step):
            size = min(self._step, end - at)
            own = [_moved(one[(at - begin) // _BYTE :], (at - begin) % _BYTE) for one in masks]
            yield at, [one[: -(-size // _BYTE)].copy() for one in own]

    def _group(self, begin: int) -> list[np.ndarray]:
        if (known := _KEPT.get(self._number, begin)) is None:
            known = self._find(begin, min(self._step, self._count - begin))
            _KEPT.put(self._number, begin, known)
        return known


def _moved(bits: np.ndarray, places: int) -> np.ndarray:
    """Return bits without the first few, less than a byte."""
    if not places:
        return bits
    moved = bits >> places
    moved[:-1] |= bits[1:] << (_BYTE - places)
    return moved
