"""Sums of rows as torch makes them: in order, with levels for what is complete; down columns too.

Rows are numbers of float32. ``torch_order`` has vectors whose elements follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Partial sums of a vector, vectors of a row, levels of sums of rows: one and higher ones.
VECTOR, VECTORS, HIGHER = 8, 4, 3
_LEVELS = 1 + HIGHER
ROW = VECTOR * VECTORS
#: Numbers from which on it takes less to round them together.
_MANY = 256
#: Bits of float32's exponent; of float16 the least normal number, and what is beyond the greatest.
_EXPONENT = np.uint32(0x7F800000)
_LEAST_NORMAL, _TOO_LARGE = np.float32(2**-14), np.float32(2**16)


class Levels:
    """A sum of rows in order, with a level for each that is complete.

    Args:
        count: Rows.
        width: Shape of a row.
    """

    def __init__(self, count: int, width: tuple[int, ...]) -> None:
        self.step = 1 << max(4, max(count - 1, 0).bit_length() // _LEVELS)
        self._waiting = [np.zeros((0, *width), np.float32) for _ in range(_LEVELS)]

    def add(self, rows: np.ndarray, level: int = 0) -> None:
        """Add rows to a level; what is complete goes to the next."""
        rows = np.concatenate([self._waiting[level], rows])
        if level == _LEVELS - 1:
            self._waiting[level] = sum_of_groups(rows[None])
            return
        whole = len(rows) // self.step * self.step
        self._waiting[level] = rows[whole:]
        if whole:
            groups = rows[:whole].reshape(whole // self.step, self.step, *rows.shape[1:])
            self.add(sum_of_groups(groups), level + 1)

    def begin_with(self, higher: np.ndarray) -> None:
        """Take the sums of all rows before, of which none wait, float32 [HIGHER, rows' shape]."""
        self._waiting[1:] = [one[None] for one in higher]

    def total(self) -> np.ndarray:
        """Return the sum."""
        first, *higher = (sum_of_groups(level[None])[0] for level in self._waiting)
        for one in higher:
            first = first + one
        return first


class Interleaved:
    """A sum of rows in four sums, of which each gets every fourth.

    Args:
        count: Rows.
        width: Shape of a row.
    """

    def __init__(self, count: int, width: tuple[int, ...]) -> None:
        self._levels = Levels(count // VECTORS, (VECTORS, *width))
        self._rest = np.zeros((0, *width), np.float32)

    def add(self, rows: np.ndarray) -> None:
        """Add rows."""
        rows = np.concatenate([self._rest, rows])
        whole = len(rows) // VECTORS * VECTORS
        self._rest = rows[whole:]
        groups = rows[:whole].reshape(whole // VECTORS, VECTORS, *rows.shape[1:])
        self._levels.add(groups)

    def total(self) -> np.ndarray:
        """Return the sum."""
        first, *others = self._levels.total()
        for one in (*self._rest, *others):
            first = first + one
        return first


def interleaved(rows: np.ndarray) -> np.ndarray:
    """Return the sum of rows that ``Interleaved`` makes."""
    found = Interleaved(len(rows), rows.shape[1:])
    found.add(rows)
    return found.total()


def in_groups(shape: Sequence[int], code: str) -> int:
    """Return how many columns torch adds up in groups, from the first on; the rest one by one.

    Args:
        shape: Of the tensor, whose first dimension is added up as its last, transposed.
        code: Of its type.
    """
    middle, last = math.prod(shape[1:-1]), shape[-1]
    if middle > 1 and last > 1:
        return middle // VECTORS * VECTORS * last
    least = VECTOR * (1 if code == "F32" else 2)
    group = ROW if middle * last >= least else VECTORS
    return middle * last // group * group


class ColumnSums:
    """Sums down columns, from consecutive rows.

    Args:
        rows: How many.
        width: How many columns.
        main: Those of them that are added up in groups.
        code: Of the type that the sums are rounded to, and that the elements have.
    """

    def __init__(self, rows: int, width: int, main: int, code: str) -> None:
        self.together, self.size = 1, 0
        self._code, self._width, self._main = code, width, main
        self._levels = Levels(rows, (main,))
        self._others = Interleaved(rows, (width - main,))

    def add(self, values: np.ndarray) -> None:
        """Add rows, flat."""
        rows = values.reshape(-1, self._width)
        self._levels.add(rows[:, : self._main])
        self._others.add(rows[:, self._main :])

    def result(self) -> np.ndarray:
        """Return the sums, rounded to their type."""
        return rounded_to(np.concatenate([self._levels.total(), self._others.total()]), self._code)


class ColumnNorms:
    """Norms down columns, from consecutive rows.

    Args:
        width: How many columns.
        code: Of the type that the norms are rounded to, and that the elements have.
    """

    def __init__(self, width: int, code: str) -> None:
        self.together, self.size = 1, 0
        self._code, self._sums = code, np.zeros(width, np.float32)

    def add(self, values: np.ndarray) -> None:
        """Add rows, flat."""
        for row in np.square(values.reshape(-1, len(self._sums))):
            self._sums += row

    def result(self) -> np.ndarray:
        """Return the norms, rounded to their type."""
        return rounded_to(np.sqrt(self._sums), self._code)


def rounded_to(numbers: np.ndarray, code: str) -> np.ndarray:
    """Return float32 numbers rounded to a type, as float64."""
    return narrowed(numbers, code).astype(np.float64)


def narrowed(numbers: np.ndarray, code: str) -> np.ndarray:
    """Return float32 numbers rounded to a type that float32 has."""
    if code == "F16":
        made = _halves(numbers) if numbers.size >= _MANY else None
        return numbers.astype(np.float16).astype(np.float32) if made is None else made
    if code == "BF16":
        bits = np.ascontiguousarray(numbers).view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return np.where(np.isnan(numbers), numbers, bits.astype(np.uint32).view(np.float32))
    return numbers


def _halves(numbers: np.ndarray) -> np.ndarray | None:
    """Return float32 numbers rounded to float16 in less time, None if one becomes infinite or NaN.

    Above a power of 2 numbers of float16 are as far apart as those of float32 are above 2**13 times
    that power, where adding a number leaves it rounded.
    """
    powers = (np.ascontiguousarray(numbers).view(np.uint32) & _EXPONENT).view(np.float32)
    np.maximum(powers, _LEAST_NORMAL, out=powers)
    powers *= np.float32(1.5 * 2**13)
    made = numbers + powers
    made -= powers
    np.copysign(made, numbers, out=made)  # a zero's sign too
    return made if np.abs(made).max() < _TOO_LARGE else None


def sum_of_groups(groups: np.ndarray) -> np.ndarray:
    """Return the sums of each group's rows, one row after the other, from zero."""
    if groups.shape[-1] >= VECTOR and groups.strides[-1] == groups.itemsize:
        # numpy has this order too where rows lie in memory one after the other
        return np.add.reduce(groups, axis=1) + np.float32(0)
    total = np.zeros((len(groups), *groups.shape[2:]), np.float32)
    for row in range(groups.shape[1]):
        total = total + groups[:, row]
    return total
