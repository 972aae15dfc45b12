"""Elements as values of steps: what a method's functions are given where native code is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from shardmerge.methods.passes import Axis, Band, Masks, vectors
from shardmerge.methods.program import Writer

if TYPE_CHECKING:
    import numpy as np

Key = tuple[int, int]
_MOST = (1 << 32) - 1
#: Returns the elements from one on of what is computed beside the steps: (first, count) -> array.
Made = Callable[[int, int], "np.ndarray"]


class Value:
    """A value that steps compute, with the operators that torch's tensors have.

    Args:
        writer: Writes its steps.
        number: Of the value.
    """

    __slots__ = ("number", "writer")

    def __init__(self, writer: Writer, number: int) -> None:
        self.writer, self.number = writer, number

    @property
    def dtype(self) -> str:
        """Code of its type: F64, BOOL, or one that float32 holds."""
        return self.writer.dtypes[self.number]

    def _step(self, name: str, *others: Value | float, dtype: str | None = None) -> Value:
        wide = "F64" if self.dtype == "F64" else "F32"
        numbers = [
            one.number if isinstance(one, Value) else self.writer.full(one, wide) for one in others
        ]
        value = self.writer.step(name, self.number, *numbers)
        self.writer.dtypes[value] = dtype or wide
        return Value(self.writer, value)

    def __add__(self, other: Value | float) -> Value:
        return self._step("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._step("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._step("times", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._step("over", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._step("gt", other, dtype="BOOL")

    def __ge__(self, other: Value | float) -> Value:
        return self._step("ge", other, dtype="BOOL")

    def __lt__(self, other: Value | float) -> Value:
        return self._step("lt", other, dtype="BOOL")

    def __and__(self, other: Value) -> Value:
        return self._step("and", other, dtype="BOOL")

    def eq(self, other: Value | float) -> Value:
        """Return where two values are equal."""
        return self._step("eq", other, dtype="BOOL")

    def ne(self, other: Value | float) -> Value:
        """Return where two values differ."""
        return self._step("ne", other, dtype="BOOL")

    def key(self) -> Value:
        """Return the bits of the magnitude, which order as magnitudes do."""
        return self._step("key", dtype="U32")

    def abs(self) -> Value:
        """Return the magnitude."""
        return self._step("abs")

    def double(self) -> Value:
        """Return the value as float64."""
        return self if self.dtype == "F64" else self._step("wide", dtype="F64")


@dataclass
class Given:
    """What steps need besides the elements of files.

    Args:
        constants: That they name.
        loads: What makes the elements of each leaf that is no file's.
        moving: Constants that are another for other elements: (number, band, which of its bounds).
    """

    constants: list[float]
    loads: list[Made] = field(default_factory=list)
    moving: list[tuple[int, Band, int]] = field(default_factory=list)

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, int, list[float]]]:
        """Yield (first element, number, constants) of parts of which constants are the same."""
        ends = {first, first + count}
        for _, band, _ in self.moving:
            ends |= {at for at in (*band.at_low, *band.at_high) if first < at < first + count}
        for begin, end in pairwise(sorted(ends)):
            constants = list(self.constants)
            for number, band, side in self.moving:
                constants[number] = band.bounds(begin)[side]
            yield begin, end - begin, constants


@dataclass
class SymbolicElements:
    """The elements of a call's inputs, as steps.

    Args:
        writer: Writes steps.
        inputs: The values of the inputs.
        shape: Of the tensor that they are elements of.
        given: Filled with what the steps need besides.
    """

    writer: Writer
    inputs: Sequence[int]
    shape: tuple[int, ...]
    given: Given

    def __getitem__(self, index: int) -> Value:
        return Value(self.writer, self.inputs[index])

    def full(self, number: float) -> Value:
        return Value(self.writer, self.writer.full(number, "F32"))

    def where(self, mask: Value, yes: Value | float, no: Value | float) -> Value:
        pair = [one if isinstance(one, Value) else self.full(one) for one in (yes, no)]
        value = self.writer.step("select", mask.number, *(one.number for one in pair))
        self.writer.dtypes[value] = "BOOL" if pair[0].dtype == "BOOL" else "F32"
        return Value(self.writer, value)

    def number(self, mask: Value) -> Value:
        return self.where(mask, 1.0, 0.0)

    def rounded(self, value: Value) -> Value:
        return value._step("single", dtype="F32") if value.dtype == "F64" else value

    def inside(self, value: Value, band: Band) -> Value:
        key, masks = value.key(), []
        for side, name in enumerate(("at least", "at most")):
            bound = self._bits(band.bounds(0)[side])
            self.given.moving.append((len(self.writer.constants) - 1, band, side))
            masks.append(key._step(name, bound, dtype="BOOL"))
        return masks[0] & masks[1]

    def chance(self, key: Key, probability: float) -> Value:
        drawn = Value(self.writer, self.writer.load("U32"))
        self.given.loads.append(partial(_draws, key))
        # a draw is a number of 32 bits over 2**32
        least = math.ceil(probability * 2.0**32)
        if least > _MOST:
            return self.full(0.0).eq(0.0)
        return drawn._step("below", self._bits(max(least, 0)), dtype="BOOL")

    def chosen(self, mask: Masks) -> Value:
        self.given.loads.append(partial(_numbers, mask))
        loaded = Value(self.writer, self.writer.load("U32"))
        return loaded._step("at least", self._bits(1), dtype="BOOL")

    def _bits(self, number: int) -> Value:
        return Value(self.writer, self.writer.full(number, "U32"))

    def along(self, values: np.ndarray, axis: Axis) -> Value:
        if len(values) == 1:
            return self.full(float(values[0]))
        self.given.loads.append(partial(_along, values.astype("<f4"), self.shape, axis))
        return Value(self.writer, self.writer.load("F32"))


def _draws(key: Key, first: int, count: int) -> np.ndarray:
    """Return random numbers of 32 bits."""
    from shardmerge.methods.kernels.keys import draws

    return draws(key, first, count)


def _numbers(mask: Masks, first: int, count: int) -> np.ndarray:
    return mask(first, count).astype("<u4")


def _along(
    values: np.ndarray, shape: Sequence[int], axis: Axis, first: int, count: int
) -> np.ndarray:
    """Return for each of some elements the number of its vector."""
    import numpy as np

    number, length = vectors(shape, axis)
    if axis == "first":
        start = first % number
        return np.resize(np.roll(values, -start), count)
    low = first // length
    rows = values[low : (first + count - 1) // length + 1]
    return np.ascontiguousarray(np.repeat(rows, length)[first - low * length :][:count])
