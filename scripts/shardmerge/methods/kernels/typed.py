"""Numbers with their type, as numpy's arrays: what is made of them is rounded as torch rounds it.

Torch computes with float16 and bfloat16 in float32, and rounds each result once. A number of Python
behind an operator is one of the type that stands before it; as a factor or divisor it is one of
float32. So passes know numbers of whole tensors without torch, and checks know elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from shardmerge.methods.kernels import circular
from shardmerge.methods.kernels.plain import Numbers, PlainElements
from shardmerge.methods.kernels.torch_order import TorchSum
from shardmerge.methods.kernels.torch_rows import ColumnSums, in_groups, narrowed
from shardmerge.methods.passes import Axis, KeyBand, Masks
from shardmerge.methods.program import torch_fuses

#: Magnitudes from which on ``circular`` says nothing of sines.
_FAR = 1e6
#: The only number of 16 bits whose sine torch rounds in two ways: in float32 it lies so near the
#: middle between two of float16 that it is that middle, or the number before it in vectors' code.
_BETWEEN, _NEARER = 300.0, 0.99951171875
#: Of these a number of Python is a factor or divisor.
_SCALING = (np.multiply, np.divide)


@dataclass(frozen=True)
class TypedNumbers(Numbers):
    """Numbers of a type: what operators make of them is rounded to it.

    Args:
        array: The numbers: float32 for float16, bfloat16 and float32, else float64 or bool.
        dtype: Code of the type: F16, BF16, F32, F64 or BOOL.
    """

    dtype: str

    def _alike(self, other: TypedNumbers | float) -> TypedNumbers:
        """Return what stands behind an operator; a number is one of the type."""
        if isinstance(other, TypedNumbers):
            return other
        if self.dtype == "F64":
            return TypedNumbers(np.float64(other), "F64")
        return numbers_of(other, self.dtype)

    def _with(self, function: Any, other: TypedNumbers | float) -> TypedNumbers:
        own, code = self.array, self.dtype
        if function not in _SCALING:
            other = self._alike(other)
        elif not isinstance(other, TypedNumbers):
            other = TypedNumbers(own.dtype.type(other), code)
        if other.dtype != code:
            code = "F64" if "F64" in (code, other.dtype) else "F32"
        with np.errstate(all="ignore"):
            made = function(own, other.array)
            if made.dtype == bool:
                return TypedNumbers(made, "BOOL")
            return TypedNumbers(made if code == "F64" else narrowed(made, code), code)

    def __le__(self, other: TypedNumbers | float) -> TypedNumbers:
        return self._with(np.less_equal, other)

    def abs(self) -> TypedNumbers:
        """Return the magnitudes."""
        return TypedNumbers(np.abs(self.array), self.dtype)

    def clamp(self, least: float, most: float) -> TypedNumbers:
        """Return the numbers brought to a range of numbers of their type; NaN stays."""
        low, high = (numbers_of(one, self.dtype).array for one in (least, most))
        return TypedNumbers(np.minimum(np.maximum(self.array, low), high), self.dtype)

    def double(self) -> TypedNumbers:
        """Return the numbers as float64."""
        return TypedNumbers(self.array.astype(np.float64), "F64")

    def __getitem__(self, index: Any) -> TypedNumbers:
        return TypedNumbers(self.array[index], self.dtype)

    def __len__(self) -> int:
        return len(self.array)

    def sum(self) -> TypedNumbers:
        """Return the sum of a vector, in the order of torch's."""
        total = TorchSum(self.array.size, self.dtype)
        total.add(self.array)
        return TypedNumbers(total.result()[0].astype(np.float32), self.dtype)

    def acos(self) -> TypedNumbers:
        """Return the arc cosines of numbers in [-1, 1]; those of float32 are torch's own."""
        return self._called("acos", circular.acos)

    def cos(self) -> TypedNumbers:
        """Return the cosines; those of float32 are torch's own."""
        return self._called("cos", partial(_circular, np.cos, circular.cos))

    def sin(self) -> TypedNumbers:
        """Return the sines; those of float32 are torch's own."""
        found = self._called("sin", partial(_circular, np.sin, circular.sin))
        between = np.abs(self.array) == _BETWEEN
        if self.dtype == "F16" and between.any() and torch_fuses():
            found.array[between] = np.copysign(_NEARER, found.array[between])
        signed = np.where(self.array == 0, self.array, found.array)  # -0 stays
        return TypedNumbers(signed, found.dtype)

    def _called(self, name: str, function: Callable[[np.ndarray], np.ndarray]) -> TypedNumbers:
        """Return a function's values: by torch where the last bit is its library's."""
        if self.dtype == "F32":
            import torch

            return TypedNumbers(getattr(torch, name)(torch.from_numpy(self.array)).numpy(), "F32")
        with np.errstate(invalid="ignore"):
            return numbers_of(function(self.array.astype(np.float64)), self.dtype)


def _circular(
    plain: Callable[[np.ndarray], np.ndarray],
    near: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
) -> np.ndarray:
    """Return sines or cosines, of large numbers, infinite ones and NaN by numpy."""
    far = ~(np.abs(x) < _FAR)
    return np.where(far, plain(x), near(np.where(far, 0.0, x)))


def numbers_of(numbers: np.ndarray | Sequence[float] | float, dtype: str) -> TypedNumbers:
    """Return numbers as torch makes them ones of a type: by way of float32."""
    with np.errstate(all="ignore"):
        return TypedNumbers(narrowed(np.asarray(numbers).astype(np.float32), dtype), dtype)


def where(mask: TypedNumbers, yes: float, no: TypedNumbers) -> TypedNumbers:
    """Return one number where a mask is set, others elsewhere."""
    return TypedNumbers(np.where(mask.array, numbers_of(yes, no.dtype).array, no.array), no.dtype)


def mean_of_each(rows: Sequence[TypedNumbers]) -> TypedNumbers:
    """Return the mean of numbers at the same places, as torch makes it along the first dimension.

    It is added up in float32, and divided before it is rounded.
    """
    code, shape = rows[0].dtype, (len(rows), rows[0].array.size)
    sums = ColumnSums(*shape, in_groups(shape, "F32"), "F32")
    sums.add(np.stack([row.array.reshape(-1) for row in rows]))
    made = sums.result().astype(np.float32) / np.float32(len(rows))
    return TypedNumbers(narrowed(made, code).reshape(rows[0].array.shape), code)


@dataclass(frozen=True)
class TypedElements:
    """Elements of a call's inputs, as ``passes.Elements``.

    Args:
        inputs: The elements of each, of one type.
        shape, runs: As of ``PlainElements``.
    """

    inputs: Sequence[TypedNumbers]
    shape: Sequence[int]
    runs: Sequence[tuple[int, int]]

    @cached_property
    def _plain(self) -> PlainElements:
        return PlainElements([one.array for one in self.inputs], self.shape, self.runs)

    @property
    def _dtype(self) -> str:
        return self.inputs[0].dtype

    def __getitem__(self, index: int) -> TypedNumbers:
        return self.inputs[index]

    def full(self, number: float) -> TypedNumbers:
        like = self.inputs[0].array
        return TypedNumbers(np.full_like(like, numbers_of(number, self._dtype).array), self._dtype)

    def quotient(self, value: TypedNumbers, number: float) -> TypedNumbers:
        return value.over(number)

    def where(
        self, mask: TypedNumbers, yes: TypedNumbers | float, no: TypedNumbers | float
    ) -> TypedNumbers:
        pair = [one if isinstance(one, TypedNumbers) else self.full(one) for one in (yes, no)]
        (code, *others) = {one.dtype for one in pair}
        made = np.where(mask.array, pair[0].array, pair[1].array)
        return TypedNumbers(made, "F32" if others else code)

    def number(self, mask: TypedNumbers) -> TypedNumbers:
        return TypedNumbers(mask.array.astype(np.float32), self._dtype)

    def rounded(self, value: TypedNumbers) -> TypedNumbers:
        return numbers_of(value.array, self._dtype)

    def single(self, value: TypedNumbers) -> TypedNumbers:
        return numbers_of(value.array, "F32")

    def inside(self, value: TypedNumbers, band: KeyBand) -> TypedNumbers:
        return TypedNumbers(self._plain.inside(Numbers(value.array), band).array, "BOOL")

    def chosen(self, mask: Masks) -> TypedNumbers:
        return TypedNumbers(self._plain.chosen(mask).array, "BOOL")

    def along(self, values: np.ndarray, axis: Axis, *, wide: bool = False) -> TypedNumbers:
        found = self._plain.along(values, axis, wide=wide).array
        return TypedNumbers(found, "F64") if wide else numbers_of(found, self._dtype)

    def exponent(self, value: TypedNumbers) -> TypedNumbers:
        return TypedNumbers(self._plain.exponent(Numbers(value.array)).array, "F64")

    def mantissa(self, value: TypedNumbers) -> TypedNumbers:
        return TypedNumbers(self._plain.mantissa(Numbers(value.array)).array, "F64")

    def power_of_two(self, value: TypedNumbers) -> TypedNumbers:
        return TypedNumbers(self._plain.power_of_two(Numbers(value.array)).array, "F64")
