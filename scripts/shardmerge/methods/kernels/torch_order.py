"""Sums in the order in which torch adds up on one thread, from pieces of tensors.

Torch's code for x86 processors keeps 8 partial sums a vector, whatever vectors the processor has.
A sum has four vectors, which go to higher levels after some rows, so that large sums are not added
to small numbers; of 16-bit types two vectors are added first. A norm has one vector and no levels,
of float16 one number. Rows of a matrix are such vectors each. Down the columns of a matrix whole
rows are added in such levels. The order is held by golden tests against torch itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_rows import (
    ROW,
    VECTOR,
    VECTORS,
    ColumnNorms,
    ColumnSums,
    Levels,
    in_groups,
    interleaved,
    rounded_to,
    sum_of_groups,
)
from shardmerge.methods.passes import TorchSums, along_first, vectors
from shardmerge.methods.program import torch_fuses

#: Columns below which fewer elements are added up at a time.
_FEW_COLUMNS = 1024
#: Adds consecutive elements to sums, or norms, one for each value: (sums, first, count).
Feed = Callable[[Sequence[Any], int, int], None]


def torch_sums(
    feed: Feed,
    shape: Sequence[int],
    codes: Sequence[str],
    wanted: TorchSums,
    rows: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return what a pass asks for, float64 [values, vectors].

    Args:
        feed: Adds consecutive elements to the sums of all values.
        shape: Of the tensor.
        codes: Of the values' types.
        wanted: The request.
        rows: Which vectors, (first, number), if not all; their elements follow each other.
    """
    steps = fed(shape, codes, wanted, rows)
    try:
        while True:
            feed(*next(steps))
    except StopIteration as end:
        return end.value


def fed(
    shape: Sequence[int],
    codes: Sequence[str],
    wanted: TorchSums,
    rows: tuple[int, int] | None = None,
) -> Generator[tuple[Sequence[Any], int, int], None, np.ndarray]:
    """Yield what is to be fed, as ``Feed`` takes it, and return as ``torch_sums`` does.

    Args:
        shape, codes, wanted, rows: As of ``torch_sums``.
    """
    number, length = vectors(shape, wanted.axis)
    if number > 1 and along_first(shape, wanted.axis):
        return (yield from _down(shape, codes, wanted))
    found = []
    for first, size, together in _vectors(number, length, wanted.chunk, rows):
        sums = [new_sum(wanted, size, code, together) for code in codes]
        most = max(BLOCK, size * together) if together > 1 else BLOCK
        for at in range(first, first + size * together, most):
            yield sums, at, min(most, first + size * together - at)
        found.append([one.result() for one in sums])
    return np.concatenate(found, axis=1)


def new_sum(wanted: TorchSums, length: int, code: str, together: int = 1) -> TorchSum | TorchNorm:
    """Return what adds up vectors for a request."""
    return TorchNorm(code, together) if wanted.kind == "norm" else TorchSum(length, code, together)


def _vectors(
    number: int, length: int, chunk: int, rows: tuple[int, int] | None
) -> Iterator[tuple[int, int, int]]:
    """Yield (first element, elements of a vector, vectors) of what is added up together."""
    begin, count = rows or (0, number)
    if number == 1 and chunk:
        for first in range(0, length, chunk):
            yield first, min(chunk, length - first), 1
        return
    step = max(1, BLOCK // length)
    for row in range(begin, begin + count, step):
        yield row * length, length, min(step, begin + count - row)


def _down(
    shape: Sequence[int], codes: Sequence[str], wanted: TorchSums
) -> Generator[tuple[Sequence[Any], int, int], None, np.ndarray]:
    """Yield what is to be fed to sums or norms of columns, a stripe of them at a time."""
    found = []
    rows, columns = shape[0], math.prod(shape[1:])
    for first in range(0, columns, BLOCK):
        width = min(BLOCK, columns - first)
        sums: list[Any] = [ColumnNorms(width, code) for code in codes]
        if wanted.kind == "sum":
            mains = [min(max(in_groups(shape, code) - first, 0), width) for code in codes]
            pairs = zip(codes, mains, strict=True)
            sums = [ColumnSums(rows, width, main, code) for code, main in pairs]
        # of few columns fewer elements: what is made of them stays in a processor's cache
        few = BLOCK // 4 if columns < _FEW_COLUMNS else BLOCK
        step = max(1, few // columns) if width == columns else 1
        for row in range(0, rows, step):
            yield sums, row * columns + first, min(step, rows - row) * width
        found.append([one.result() for one in sums])
    return np.concatenate(found, axis=1)


class TorchSum:
    """Sums of vectors, from consecutive pieces whose length is a multiple of ``size``, or the last.

    Of several vectors a piece has all elements.

    Args:
        count: Elements of a vector.
        code: Of the type that the sum is rounded to, and that the elements have.
        together: Vectors that are added up at once.

    Attributes:
        rows: Rows that are added up first.
        size: Their elements.
    """

    def __init__(self, count: int, code: str, together: int = 1) -> None:
        self._code, self.together = code, together
        self._fold = 1 if code == "F32" else 2
        self._short = count < VECTOR * self._fold
        self._levels = Levels(count // (VECTOR * self._fold) // VECTORS, (together, ROW))
        self.rows = self._levels.step
        self.size = self.rows * ROW * self._fold
        self._rest = np.zeros((together, 0), np.float32)

    def add(self, values: np.ndarray) -> None:
        """Add the next piece, flat."""
        values = values.reshape(self.together, -1)
        whole = 0 if self._short else values.shape[1] // self.size * self.size
        self._rest = values[:, whole:]
        rows = self._folded(values[:, :whole]).reshape(self.together, -1, self.rows, ROW)
        self.add_parts(sum_of_groups(rows.reshape(-1, self.rows, ROW)))

    def add_parts(self, parts: np.ndarray) -> None:
        """Add the next rows, added up ``rows`` at a time, float32 [vectors x parts, 32]."""
        parts = parts.reshape(self.together, -1, ROW)
        self._levels.add(parts.swapaxes(0, 1), 1)

    def begin_with(self, higher: np.ndarray) -> None:
        """Begin behind rows that others have added up, float32 [HIGHER, 32]: of one vector."""
        self._levels.begin_with(higher[:, None])

    def _folded(self, values: np.ndarray) -> np.ndarray:
        if self._fold == 1:
            return values
        pairs = values.reshape(len(values), -1, 2, VECTOR)
        return (pairs[:, :, 0] + pairs[:, :, 1]).reshape(len(values), -1)

    def result(self) -> np.ndarray:
        """Return the sums, rounded to their type."""
        if self._short:
            return rounded_to(interleaved(self._rest.T), self._code)
        size = VECTOR * self._fold
        whole = self._rest.shape[1] // size * size
        vectors = self._folded(self._rest[:, :whole]).reshape(self.together, -1, VECTOR)
        rows = vectors.shape[1] // VECTORS
        full = vectors[:, : rows * VECTORS].reshape(self.together, rows, ROW)
        self._levels.add(full.swapaxes(0, 1))
        total = self._levels.total().reshape(self.together, VECTORS, VECTOR)
        first, *others = total.swapaxes(0, 1)
        for one in (*vectors[:, rows * VECTORS :].swapaxes(0, 1), *others):
            first = first + one
        single = np.zeros(self.together, np.float32)
        for one in (*self._rest[:, whole:].T, *first.T):
            single = single + one
        return rounded_to(single, self._code)


class TorchNorm:
    """Norms of vectors, from consecutive pieces whose length is a multiple of 8, or the last.

    Args:
        code: Of the type that it is rounded to, and that the elements have.
        together: Vectors at once, of which a piece has all elements.

    Attributes:
        size: Elements that are squared first.
        lanes: Partial sums: one of float16.
        sums: Of squares, float32 [vectors, lanes].
    """

    size = ROW

    def __init__(self, code: str, together: int = 1) -> None:
        self._code, self.together = code, together
        self.lanes = 1 if code == "F16" else VECTOR
        self.sums = np.zeros((together, self.lanes), np.float32)
        self._rest = np.zeros((together, 0), np.float32)

    def add(self, values: np.ndarray) -> None:
        """Add the next piece, flat."""
        values = values.reshape(len(self.sums), -1)
        whole = values.shape[1] // self.lanes * self.lanes
        self._rest = values[:, whole:]
        squares = np.square(values[:, :whole]).reshape(len(values), -1, self.lanes)
        rows = np.concatenate([self.sums[:, None], squares], axis=1)
        self.sums = np.add.accumulate(rows, axis=1)[:, -1]

    def result(self) -> np.ndarray:
        """Return the norms, rounded to their type."""
        total, *others = self.sums.T
        for one in others:
            total = total + one
        # of the last ones torch's code takes four at a time, and adds what is left in one step
        apart = self._rest.shape[1] // VECTORS * VECTORS
        for place, one in enumerate(self._rest.T):
            fused = place >= apart and torch_fuses()
            total = _fused(one, total) if fused else total + np.square(one)
        return rounded_to(np.sqrt(total), self._code)


def _fused(x: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return ``x * x + total`` in float32, rounded once."""
    square = np.square(x.astype(np.float64))
    wide = square + total
    # rounded to odd, so that the second rounding is right (see ``evaluate.round_into``)
    part = wide - square
    lost = (square - (wide - part)) + (total - part)
    bits = wide.view(np.int64)
    odd = np.where((np.abs(lost) > 0) & (bits & 1 == 0), bits + np.where(lost > 0, 1, -1), bits)
    return odd.view(np.float64).astype(np.float32)
