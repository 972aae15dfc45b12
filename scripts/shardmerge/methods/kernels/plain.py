"""Elements as numpy arrays: the plainest execution of a method's function of elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shardmerge.methods.kernels.masks import mask_of_runs
from shardmerge.methods.passes import (
    BIAS,
    MANTISSA,
    ROOT_OF_HALF,
    SINGLE_BIAS,
    SINGLE_MANTISSA,
    Axis,
    KeyBand,
    Masks,
    RowSteps,
    along_first,
    vectors,
)


@dataclass(frozen=True)
class Numbers:
    """Some elements of a value, with the operators that torch's tensors have.

    Args:
        array: The elements.
    """

    array: np.ndarray

    def _with(self, function: Any, other: Numbers | float) -> Numbers:
        own = self.array
        other = other.array if isinstance(other, Numbers) else own.dtype.type(other)
        return Numbers(function(own, other))

    def __add__(self, other: Numbers | float) -> Numbers:
        return self._with(np.add, other)

    def __sub__(self, other: Numbers | float) -> Numbers:
        return self._with(np.subtract, other)

    def __mul__(self, other: Numbers | float) -> Numbers:
        return self._with(np.multiply, other)

    def __truediv__(self, other: Numbers) -> Numbers:
        if not isinstance(other, Numbers):
            raise TypeError("a number divides by Elements.quotient")
        return self._with(np.divide, other)

    def over(self, number: float) -> Numbers:
        """Return the values divided by a number."""
        return self._with(np.divide, number)

    def __gt__(self, other: Numbers | float) -> Numbers:
        return self._with(np.greater, other)

    def __ge__(self, other: Numbers | float) -> Numbers:
        return self._with(np.greater_equal, other)

    def __lt__(self, other: Numbers | float) -> Numbers:
        return self._with(np.less, other)

    def __and__(self, other: Numbers) -> Numbers:
        return self._with(np.logical_and, other)

    def eq(self, other: Numbers | float) -> Numbers:
        """Return where two values are equal."""
        return self._with(np.equal, other)

    def ne(self, other: Numbers | float) -> Numbers:
        """Return where two values differ."""
        return self._with(np.not_equal, other)

    def abs(self) -> Numbers:
        """Return the magnitudes."""
        return Numbers(np.abs(self.array))

    def clamp(self, least: float, most: float) -> Numbers:
        """Return the values brought to a range; NaN stays."""
        return Numbers(np.clip(self.array, least, most))

    def double(self) -> Numbers:
        """Return the values as float64."""
        return Numbers(self.array.astype(np.float64))


@dataclass(frozen=True)
class PlainElements:
    """Elements of a call's inputs.

    Args:
        arrays: One for each input, of one type.
        shape: Of the tensor that they are elements of.
        runs: Which elements they are: (first, number) of those that follow each other.
    """

    arrays: Sequence[np.ndarray]
    shape: Sequence[int]
    runs: Sequence[tuple[int, int]]

    @cached_property
    def _places(self) -> np.ndarray:
        return places_of(self.runs)

    def __getitem__(self, index: int) -> Numbers:
        return Numbers(self.arrays[index])

    def full(self, number: float) -> Numbers:
        return Numbers(np.full_like(self.arrays[0], number))

    def quotient(self, value: Numbers, number: float) -> Numbers:
        return value.over(number)

    def where(self, mask: Numbers, yes: Any, no: Any) -> Numbers:
        pair = [one if isinstance(one, Numbers) else self.full(one) for one in (yes, no)]
        return Numbers(np.where(mask.array, pair[0].array, pair[1].array))

    def number(self, mask: Numbers) -> Numbers:
        return Numbers(mask.array.astype(self.arrays[0].dtype))

    def rounded(self, value: Numbers) -> Numbers:
        return Numbers(value.array.astype(self.arrays[0].dtype))

    def single(self, value: Numbers) -> Numbers:
        return Numbers(value.array.astype(np.float32))

    def inside(self, value: Numbers, band: KeyBand) -> Numbers:
        keys = np.abs(value.array.astype(np.float32)).view(np.int32).astype(np.int64)
        places = self._places
        mask = (keys > band.low) & (keys < band.high)
        for key, (begin, end) in ((band.low, band.at_low), (band.high, band.at_high)):
            mask |= (keys == key) & (places >= begin) & (places < end)
        return Numbers(mask & (band.low <= band.high))

    def chosen(self, mask: Masks) -> Numbers:
        return Numbers(mask_of_runs(mask, self.runs))

    def exponent(self, value: Numbers) -> Numbers:
        return Numbers(_exponents(value.array).astype(np.float64))

    def mantissa(self, value: Numbers) -> Numbers:
        bits = value.array.view(np.int64)
        return Numbers((bits - (_exponents(value.array) << MANTISSA)).view(np.float64))

    def power_of_two(self, value: Numbers) -> Numbers:
        if value.array.dtype == np.float32:
            bits = (value.array.view(np.int32) + SINGLE_BIAS) << SINGLE_MANTISSA
            return Numbers(bits.view(np.float32))
        bits = (value.array.view(np.int64) + BIAS) << MANTISSA
        return Numbers(bits.view(np.float64))

    def along(self, values: np.ndarray, axis: Axis, *, wide: bool = False) -> Numbers:
        like = self.arrays[0]
        count, length = vectors(self.shape, axis)
        first = along_first(self.shape, axis)
        chosen = self._places % count if first else self._places // length
        return Numbers(values.astype(np.float64 if wide else like.dtype)[chosen])


def places_of(runs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the index of every element of runs, int64."""
    first, count = np.array(runs, np.int64).reshape(-1, 2).T
    end = np.cumsum(count)
    return np.repeat(first - (end - count), count) + np.arange(count.sum())


def result_of(wanted: RowSteps, found: np.ndarray) -> np.ndarray:
    """Return what a request makes of the numbers that its last step found, [values, rows]."""
    if not wanted.result:
        return found
    with np.errstate(all="ignore"):
        x = PlainElements(found, found.shape[1:], ())
        return wanted.result(x, [*map(Numbers, found)]).array[None]


def _exponents(array: np.ndarray) -> np.ndarray:
    """Return the powers of 2 that bring numbers near 1, as integers."""
    return (array.view(np.int64) - ROOT_OF_HALF) >> MANTISSA
