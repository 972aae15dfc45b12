"""Elements as values of steps: what a method's functions are given where native code is wanted."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from shardmerge.methods.passes import Axis, KeyBand, Masks, vectors
from shardmerge.methods.program import LANES, Writer, nearest

if TYPE_CHECKING:
    import numpy as np

#: Returns the elements from one on of what is computed beside the steps: (first, count) -> array;
#: masks as bits.
Made = Callable[[int, int], "np.ndarray"]

#: Of numbers that float16 are divided by: nothing overflows, and no bit is lost below.
_LEAST = 2.0**-24


class StepValue:
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

    def _step(self, name: str, *others: StepValue | float, dtype: str | None = None) -> StepValue:
        writer, own = self.writer, self.number
        wide = "F64" if writer.dtypes[own] == "F64" else "F32"
        numbers = [
            one.number if isinstance(one, StepValue) else writer.full(one, wide) for one in others
        ]
        value = writer.step(name, own, *numbers)
        writer.dtypes[value] = dtype or wide
        if writer.narrow and dtype is None and wide == "F32":
            value = writer.round(value, _common(self, *others))
        return StepValue(self.writer, value)

    def __add__(self, other: StepValue | float) -> StepValue:
        number = other.constant() if isinstance(other, StepValue) else other
        if 0.0 in (self.constant(), number) and self.dtype != "F64":
            # what is added to 0 has its type already
            return self._step("add", other, dtype=_common(self, other))
        return self._step("add", other)

    def __sub__(self, other: StepValue | float) -> StepValue:
        return self._step("sub", other)

    def __mul__(self, other: StepValue | float) -> StepValue:
        return self._step("times", other)

    def __truediv__(self, other: StepValue) -> StepValue:
        if not isinstance(other, StepValue):
            raise TypeError("a number divides by Elements.quotient")
        return self.over(other)

    def over(self, other: StepValue | float) -> StepValue:
        """Return the value divided by another, or by a number."""
        number = other.constant() if isinstance(other, StepValue) else other
        if number is not None and self.dtype != "F64":
            # a product is made in less time, and is the same where the reciprocal is exact
            if abs(math.frexp(number)[0]) == 0.5:
                return self * (1 / number)
            if self.writer.narrow and self.dtype == "F16" and _divides_halves(number):
                return self._quotient(number, other)
        return self._step("over", other)

    def constant(self) -> float | None:
        """Return the number that a value is, None if it is none of float32 that is known."""
        name, operands = self.writer.made(self.number)
        return self.writer.constants[operands[0]] if name == "full F32" else None

    def _quotient(self, number: float, other: StepValue | float) -> StepValue:
        """Return the value divided by a number, as division rounds it, in less time.

        Two factors add up to the reciprocal, whose error is then far less than any quotient of
        numbers of 11 bits that float32 has not is away from the middle between two that it has.
        Both have the reciprocal's sign, so that 0 keeps its own.
        """
        w, whole = self.writer, 1 / number
        high = nearest(whole, "F32")
        if abs(high) > abs(whole):
            (bits,) = struct.unpack("<i", struct.pack("<f", high))
            (high,) = struct.unpack("<f", struct.pack("<i", bits - 1))
        low = w.step("mul", self.number, w.constant(whole - high))
        found = w.step("fma", self.number, w.constant(high), low)
        return StepValue(w, w.round(found, _common(self, other)))

    def __gt__(self, other: StepValue | float) -> StepValue:
        return self._step("gt", other, dtype="BOOL")

    def __ge__(self, other: StepValue | float) -> StepValue:
        return self._step("ge", other, dtype="BOOL")

    def __lt__(self, other: StepValue | float) -> StepValue:
        return self._step("lt", other, dtype="BOOL")

    def __and__(self, other: StepValue) -> StepValue:
        return self._step("and", other, dtype="BOOL")

    def eq(self, other: StepValue | float) -> StepValue:
        """Return where two values are equal."""
        return self._step("eq", other, dtype="BOOL")

    def ne(self, other: StepValue | float) -> StepValue:
        """Return where two values differ."""
        return self._step("ne", other, dtype="BOOL")

    def key(self) -> StepValue:
        """Return the bits of the magnitude, which order as magnitudes do."""
        return self._step("key", dtype="U32")

    def abs(self) -> StepValue:
        """Return the magnitude."""
        return self._step("abs", dtype=self.dtype)

    def clamp(self, least: float, most: float) -> StepValue:
        """Return the value brought to a range; NaN stays."""
        raised = self._chosen(self < least, least)
        return raised if most == math.inf else raised._chosen(raised > most, most)

    def _chosen(self, mask: StepValue, other: float) -> StepValue:
        """Return a constant where a mask is set, the value elsewhere."""
        constant = self.writer.full(other, self.dtype)
        number = self.writer.step("select", mask.number, constant, self.number)
        self.writer.dtypes[number] = self.dtype
        return StepValue(self.writer, number)

    def double(self) -> StepValue:
        """Return the value as float64."""
        return self if self.dtype == "F64" else self._step("wide", dtype="F64")


def _divides_halves(number: float) -> bool:
    """Whether a number of float16 has a reciprocal that tells quotients of such numbers."""
    return _LEAST <= abs(number) <= 1 / _LEAST and nearest(number, "F16") == number


def _common(*values: StepValue | float) -> str:
    """Return the code of the type that has all values; a number has that of the others."""
    first, *others = {one.dtype for one in values if isinstance(one, StepValue)}
    return "F32" if others else first


@dataclass
class Given:
    """What steps need besides the elements of files.

    Args:
        constants: That they name.
        loads: What makes the elements of each leaf that is no file's.
        moving: Constants that are another for other elements: (number, band, which of its bounds).
        tables: Numbers of all rows.
        first: Number of the constant that is the index of the first element, None without tables.
        lengths: Numbers of the constants that are lengths of rows.
    """

    constants: list[float]
    loads: list[Made] = field(default_factory=list)
    moving: list[tuple[int, KeyBand, int]] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)
    first: int | None = None
    lengths: dict[int, int] = field(default_factory=dict)

    @property
    def stays(self) -> bool:
        """Whether constants are the same for all elements."""
        return not self.moving and self.first is None

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, int, list[float]]]:
        """Yield (first element, number, constants) of parts of which constants are the same.

        Where there are tables a part has whole vectors of one row, or less than one.
        """
        ends = {first, first + count}
        for _, band, _ in self.moving:
            ends |= {at for at in (*band.at_low, *band.at_high) if first < at < first + count}
        if self.first is not None:
            near = {edge for at in ends for edge in (at // LANES * LANES, -(-at // LANES) * LANES)}
            ends |= {edge for edge in near if first < edge < first + count}
        for begin, end in pairwise(sorted(ends)):
            constants = list(self.constants)
            for number, band, side in self.moving:
                constants[number] = band.bounds(begin)[side]
            if self.first is not None:
                constants[self.first] = begin
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

    def __getitem__(self, index: int) -> StepValue:
        return StepValue(self.writer, self.inputs[index])

    @property
    def _dtype(self) -> str:
        """Code of the type that constants have: the inputs' where values are rounded to it."""
        return self.writer.dtypes[self.inputs[0]] if self.writer.narrow else "F32"

    def full(self, number: float) -> StepValue:
        value = self.writer.full(nearest(number, self._dtype), "F32")
        self.writer.dtypes[value] = self._dtype
        return StepValue(self.writer, value)

    def quotient(self, value: StepValue, number: float) -> StepValue:
        return value.over(number)

    def where(self, mask: StepValue, yes: StepValue | float, no: StepValue | float) -> StepValue:
        pair = [one if isinstance(one, StepValue) else self.full(one) for one in (yes, no)]
        value = self.writer.step("select", mask.number, *(one.number for one in pair))
        kind = pair[0].dtype
        if kind not in ("BOOL", "F64"):
            kind = _common(*pair) if self.writer.narrow else "F32"
        self.writer.dtypes[value] = kind
        return StepValue(self.writer, value)

    def number(self, mask: StepValue) -> StepValue:
        return self.where(mask, 1.0, 0.0)

    def rounded(self, value: StepValue) -> StepValue:
        value = self.single(value) if value.dtype == "F64" else value
        if not self.writer.narrow:
            return value
        return StepValue(self.writer, self.writer.round(value.number, self._dtype))

    def inside(self, value: StepValue, band: KeyBand) -> StepValue:
        if band.marks:
            return self.chosen(band.marks)
        key, masks = value.key(), []
        for side, name in enumerate(("at least", "at most")):
            bound = self._bits(band.bounds(0)[side])
            self.given.moving.append((len(self.writer.constants) - 1, band, side))
            masks.append(key._step(name, bound, dtype="BOOL"))
        return masks[0] & masks[1]

    def single(self, value: StepValue) -> StepValue:
        if value.dtype == "F64":
            return value._step("single", dtype="F32")
        return value if value.dtype == "F32" else value._step("round F32", dtype="F32")

    def chosen(self, mask: Masks) -> StepValue:
        self.given.loads.append(mask)
        value = self.writer.load("BIT")
        self.writer.dtypes[value] = "BOOL"
        return StepValue(self.writer, value)

    def _bits(self, number: int) -> StepValue:
        return StepValue(self.writer, self.writer.full(number, "U32"))

    def along(self, values: np.ndarray, axis: Axis, *, wide: bool = False) -> StepValue:
        import numpy as np

        code = "F64" if wide else "F32"
        # of numbers that are found later the place is known already
        stored = np.ascontiguousarray(values, "<f8" if wide else "<f4")
        length = vectors(self.shape, axis)[1]
        if axis == "last" and length % LANES == 0:
            # a tensor of one row is computed by the code of those that have many
            number = self._row(stored, code, length)
        elif len(values) == 1:
            if not wide:
                return self.full(float(values[0]))
            number = self.writer.full(float(values[0]), code)
        else:
            self.given.loads.append(partial(_along, stored, self.shape, axis))
            number = self.writer.load(code)
        found = StepValue(self.writer, number)
        return found if wide else self.rounded(found)

    def _row(self, numbers: np.ndarray, code: str, length: int) -> int:
        given, constants = self.given, self.writer.constants
        if given.first is None:
            given.first = len(constants)
            constants.append(0.0)
        if length not in given.lengths:
            given.lengths[length] = len(constants)
            constants.append(length)
        given.tables.append(numbers)
        return self.writer.row(code, given.first, given.lengths[length])

    def exponent(self, value: StepValue) -> StepValue:
        return value._step("exponent", dtype="F64")

    def mantissa(self, value: StepValue) -> StepValue:
        return value._step("mantissa", dtype="F64")

    def power_of_two(self, value: StepValue) -> StepValue:
        return value._step("power", dtype="F64" if value.dtype == "F64" else "F32")


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
