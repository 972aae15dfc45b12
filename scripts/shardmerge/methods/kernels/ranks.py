"""Ranks of values within their rows, and masks that are made of them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import Masks

_HALF = 16
#: Groups of rows whose ranks are kept: threads work on few at a time.
_REMEMBERED = 4
#: Elements of a tensor of which a mask is kept: 32 MiB.
_KEPT = 1 << 28


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
        """Return the mask of consecutive elements, bool [count]; that of a whole tile is kept."""
        begins = range(first // BLOCK * BLOCK, first + count, BLOCK)
        if self._found.keys() >= set(begins):
            tiles = np.concatenate([self._tile(begin) for begin in begins])
            return tiles[first - begins.start :][:count]
        found = self._mask(first, count)
        if self._count <= _KEPT and first == begins.start and count == self._size(first):
            self._found[first] = np.packbits(found)
        return found

    def _size(self, begin: int) -> int:
        return min(BLOCK, self._count - begin)

    def _tile(self, begin: int) -> np.ndarray:
        return np.unpackbits(self._found[begin], count=self._size(begin)).view(bool)


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
    high = np.take_along_axis((keys >> _HALF).astype(np.uint16), order, axis=1)
    return np.take_along_axis(order, np.argsort(high, axis=1, kind="stable"), axis=1)
