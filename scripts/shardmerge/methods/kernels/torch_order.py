"""Sums in the order in which torch adds up a whole tensor on one thread, from pieces of it.

Torch's code for x86 processors keeps 8 partial sums a vector, whatever vectors the processor has.
A sum has four vectors, which go to higher levels after some rows, so that large sums are not added
to small numbers; of 16-bit types two vectors are added first. A norm has one vector and no levels,
of float16 one number. The order is held by golden tests against torch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import TorchSums
from shardmerge.methods.program import nearest

#: Partial sums of a vector, vectors of a row, levels of sums of rows.
VECTOR, _VECTORS, _LEVELS = 8, 4, 4
_ROW = VECTOR * _VECTORS
#: Adds consecutive elements to sums, or norms, one for each value: (sums, first, count).
Feed = Callable[[Sequence[Any], int, int], None]


def torch_sums(feed: Feed, count: int, codes: Sequence[str], wanted: TorchSums) -> list:
    """Return what a pass asks for.

    Args:
        feed: Adds consecutive elements to the sums of all values.
        count: Elements of the tensor.
        codes: Of the values' types.
        wanted: The request.
    """
    found: list[list[float]] = [[] for _ in codes]
    chunk = wanted.chunk or count
    for first in range(0, count, chunk):
        size = min(chunk, count - first)
        sums = [
            TorchNorm(code) if wanted.kind == "norm" else TorchSum(size, code) for code in codes
        ]
        for at in range(first, first + size, BLOCK):
            feed(sums, at, min(BLOCK, first + size - at))
        for row, one in zip(found, sums, strict=True):
            row.append(one.result())
    return found if wanted.chunk else [row[0] for row in found]


class TorchSum:
    """A sum, from consecutive pieces whose length is a multiple of ``size``, but for the last.

    Args:
        count: Elements of all pieces.
        code: Of the type that the sum is rounded to, and that the elements have.

    Attributes:
        rows: Rows that are added up first.
        size: Their elements.
    """

    def __init__(self, count: int, code: str) -> None:
        self._code = code
        self._fold = 1 if code == "F32" else 2
        rows = count // (VECTOR * self._fold) // _VECTORS
        self.rows = 1 << max(4, max(rows - 1, 0).bit_length() // _LEVELS)
        self.size = self.rows * _ROW * self._fold
        self._levels = [np.zeros((0, _ROW), np.float32) for _ in range(_LEVELS)]
        self._rest = np.zeros(0, np.float32)

    def add(self, values: np.ndarray) -> None:
        """Add the next piece."""
        whole = len(values) // self.size * self.size
        self._rest = values[whole:]
        rows = self._folded(values[:whole]).reshape(-1, self.rows, _ROW)
        self.add_parts(_in_order(rows))

    def add_parts(self, parts: np.ndarray) -> None:
        """Add the next rows, added up ``rows`` at a time, float32 [parts, 32]."""
        self._raise(1, parts)

    def _raise(self, level: int, rows: np.ndarray) -> None:
        """Add rows to a level; what is complete goes to the next."""
        if level == _LEVELS - 1:
            own = self._levels[level]
            self._levels[level] = _in_order(np.concatenate([own, rows])[None])
            return
        waiting = np.concatenate([self._levels[level], rows])
        groups = len(waiting) // self.rows
        self._levels[level] = waiting[groups * self.rows :]
        if groups:
            complete = waiting[: groups * self.rows].reshape(groups, self.rows, _ROW)
            self._raise(level + 1, _in_order(complete))

    def _folded(self, values: np.ndarray) -> np.ndarray:
        if self._fold == 1:
            return values
        pairs = values.reshape(-1, 2, VECTOR)
        return (pairs[:, 0] + pairs[:, 1]).reshape(-1)

    def result(self) -> float:
        """Return the sum, rounded to its type."""
        size = VECTOR * self._fold
        vectors = self._folded(self._rest[: len(self._rest) // size * size]).reshape(-1, VECTOR)
        rows = len(vectors) // _VECTORS
        self._levels[0] = vectors[: rows * _VECTORS].reshape(-1, _ROW)
        total, *higher = (_in_order(level[None])[0] for level in self._levels)
        for one in higher:
            total = total + one
        first, *others = total.reshape(_VECTORS, VECTOR)
        for one in (*vectors[rows * _VECTORS :], *others):
            first = first + one
        single = np.zeros(1, np.float32)
        for one in (*self._rest[len(vectors) * size :], *first):
            single = single + one
        return nearest(float(single[0]), self._code)


class TorchNorm:
    """A norm, from consecutive pieces whose length is a multiple of 8, but for the last.

    Args:
        code: Of the type that it is rounded to, and that the elements have.

    Attributes:
        lanes: Partial sums: one of float16.
        sums: Of squares, float32 [1, lanes].
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self.lanes = 1 if code == "F16" else VECTOR
        self.sums = np.zeros((1, self.lanes), np.float32)
        self._rest = np.zeros(0, np.float32)

    def add(self, values: np.ndarray) -> None:
        """Add the next piece."""
        whole = len(values) // self.lanes * self.lanes
        self._rest = values[whole:]
        rows = np.concatenate([self.sums, np.square(values[:whole]).reshape(-1, self.lanes)])
        self.sums = np.add.accumulate(rows, axis=0)[-1:]

    def result(self) -> float:
        """Return the norm, rounded to its type."""
        total, *others = self.sums[0]
        for one in (*others, *np.square(self._rest)):
            total = total + one
        return nearest(float(np.sqrt(total)), self._code)


def _in_order(groups: np.ndarray) -> np.ndarray:
    """Return the sums of each group's rows, one row after the other, from zero."""
    total = np.zeros((len(groups), _ROW), np.float32)
    for row in range(groups.shape[1]):
        total = total + groups[:, row]
    return total
