"""Rounding in every floating type, done in float64: what an exact comparison is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardmerge.base.dtypes import DTYPES


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format (IEEE 754-2019, section 3.3; bfloat16 alike).

    Args:
        precision: Bits of the significand, the implicit one among them.
        smallest, largest: Exponents of the smallest normal and of the largest finite numbers.
    """

    precision: int
    smallest: int
    largest: int

    @property
    def unit(self) -> float:
        """Largest relative error of one rounding."""
        return 2.0**-self.precision

    @property
    def least(self) -> float:
        """The largest rounding error of numbers next to 0."""
        return max(2.0 ** (self.smallest - self.precision), 5e-324)

    @property
    def maximum(self) -> float:
        """The largest finite number."""
        return (2 - 2.0 ** (1 - self.precision)) * 2.0**self.largest

    @property
    def overflow(self) -> float:
        """The smallest number that is rounded to infinity."""
        return self.maximum + 2.0 ** (self.largest - self.precision)


FLOAT_FORMATS = {
    "F16": FloatFormat(11, -14, 15),
    "BF16": FloatFormat(8, -126, 127),
    "F32": FloatFormat(24, -126, 127),
    "F64": FloatFormat(53, -1022, 1023),
}
#: Of float64: bits before the exponent, those of the exponent, and what it is stored with.
_MANTISSA, _EXPONENTS, _BIAS = 52, 0x7FF << 52, 1023
#: How elements lie in files; a type that numpy lacks is read as its bits.
_STORED = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def stored_dtype(code: str) -> np.dtype:
    """Return numpy's dtype for the elements of a safetensors code (bits where it has none)."""
    return np.dtype(_STORED.get(code) or f"<u{DTYPES[code].size}")


def decoded(stored: np.ndarray, code: str) -> np.ndarray:
    """Return stored elements of a floating type as float64, exactly.

    Args:
        stored: As ``stored_dtype`` says, any shape.
        code: safetensors code.
    """
    if code == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        return stored.astype(np.float64)


def half_ulp(code: str, magnitude: np.ndarray) -> np.ndarray:
    """Return the largest rounding error of numbers of a magnitude, float64 of the same shape.

    Args:
        code: safetensors code of the type that is rounded to.
        magnitude: Not negative; where it is infinite or NaN, the largest number's is returned.
    """
    form = FLOAT_FORMATS[code]
    # the exponent lies in a number's bits: that of 0 is less than any, of infinity and NaN greater
    bits = np.asarray(magnitude, np.float64).view(np.int64) & _EXPONENTS
    least, largest = ((one + _BIAS) << _MANTISSA for one in (form.smallest, form.largest))
    exponent = np.minimum(np.maximum(bits, least), largest)
    if code == "F64":
        exponent = (exponent >> _MANTISSA) - (_BIAS + form.precision)
        return np.maximum(np.ldexp(1.0, exponent), 5e-324)
    return (exponent - (form.precision << _MANTISSA)).view(np.float64)


def round_to(code: str, values: np.ndarray) -> np.ndarray:
    """Return float64 values rounded to another type, to nearest, ties to even, still as float64."""
    if code == "F64":
        return values
    if code == "F32":  # by the processor, in a tenth of the time
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return values.astype(np.float32).astype(np.float64)
    form = FLOAT_FORMATS[code]
    quantum = 2 * half_ulp(code, np.abs(values))
    rounded = np.rint(values / quantum)
    rounded *= quantum
    over = np.abs(rounded) > form.maximum
    return np.where(over, np.copysign(np.inf, rounded), rounded) if over.any() else rounded


def multiplied_and_added(x: np.ndarray, y: np.float32, z: np.ndarray) -> np.ndarray:
    """Return ``x * y + z`` of float32 numbers, rounded once.

    Float64 has the product exactly. The sum is rounded to odd, so that the second rounding is
    right: Boldo and Melquiond 2008, https://doi.org/10.1109/TC.2007.70819.
    """
    product, other = x.astype(np.float64) * np.float64(y), z.astype(np.float64)
    total = product + other
    part = total - product
    rest = (product - (total - part)) + (other - part)  # Knuth's exact error of the sum
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (rest != 0) & (bits & 1 == 0)
    towards = np.where((rest > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + towards, bits).view(np.float64).astype(np.float32)
