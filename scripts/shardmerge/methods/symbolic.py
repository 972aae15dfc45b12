"""Elements as values of steps: what a method's functions are given where native code is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from shardmerge.methods.passes import Axis, vectors
from shardmerge.methods.program import Writer

if TYPE_CHECKING:
    import numpy as np

#: Returns the elements from one on of what is computed beside the steps: (first, count) -> array.
Load = Callable[[int, int], "np.ndarray"]


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

    def equals(self, other: Value | float) -> Value:
        """Return where two values are equal."""
        return self._step("eq", other, dtype="BOOL")

    def abs(self) -> Value:
        """Return the magnitude."""
        return self._step("abs")

    def double(self) -> Value:
        """Return the value as float64."""
        return self if self.dtype == "F64" else self._step("wide", dtype="F64")


@dataclass
class SymbolicElements:
    """The elements of a call's inputs, as steps.

    Args:
        writer: Writes steps.
        inputs: The values of the inputs.
        shape: Of the tensor that they are elements of.
        loads: Filled with what is computed beside the steps, in the order of the program's loads.
    """

    writer: Writer
    inputs: Sequence[int]
    shape: tuple[int, ...]
    loads: list[Load] = field(default_factory=list)

    def __getitem__(self, index: int) -> Value:
        return Value(self.writer, self.inputs[index])

    def full(self, number: float) -> Value:
        return Value(self.writer, self.writer.full(number, "F32"))

    def where(self, mask: Value, yes: Value | float, no: Value | float) -> Value:
        pair = [one if isinstance(one, Value) else self.full(one) for one in (yes, no)]
        value = self.writer.step("select", mask.number, *(one.number for one in pair))
        return Value(self.writer, value)

    def number(self, mask: Value) -> Value:
        return self.where(mask, 1.0, 0.0)

    def along(self, values: np.ndarray, axis: Axis) -> Value:
        if len(values) == 1:
            return self.full(float(values[0]))
        self.loads.append(partial(_along, values.astype("<f4"), self.shape, axis))
        return Value(self.writer, self.writer.load("F32"))


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
