"""Numbers that a merge job records of a large tensor, so that its check need not decompose anew.

A method whose bits a library decides multiplies its result by two random vectors of signs, one from
the left and one from the right, and records the products. It records the same of what it found on
the way, such as singular vectors. The check computes the products of the inputs and of the written
tensor with the same vectors, and tests equations that the method's definition makes hold. A wrong
matrix does not satisfy them: an equation of random products holds by chance alone with a
probability of about its tolerance (Freivalds 1979, "Fast probabilistic algorithms").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shardmerge.methods.contract import TensorReader

#: How recorded numbers lie in text, by the code of the type that the kernel's result has, and the
#: error of one, relative to it.
_FORMATS = {"F32": ("<f4", 2.0**-24), "F64": ("<f8", 2.0**-53)}
#: Numbers with random signs add up to at most so many times the root of the sum of their squares,
#: but for a chance of 1e-30: Hoeffding 1963, "Probability Inequalities for Sums of Bounded Random
#: Variables".
SIGNS = 12.0
#: The same of a matrix between two vectors of random signs, relative to its Frobenius norm.
BOTH_SIGNS = SIGNS**2
#: Relative error of an operation in float64.
UNIT = 2.0**-52


class ProbeError(Exception):
    """Recorded numbers are not what they must be; the text says what."""


class UndecidedProbeError(Exception):
    """Recorded numbers are too near to a limit to tell on which side they are."""


def signs(name: str, side: str, matrix: int, count: int) -> np.ndarray:
    """Return random signs, float64 of 1 and -1, that a tensor's name decides.

    Args:
        name: Of the tensor.
        side: A word for what they are multiplied with.
        matrix: Number of the matrix in a stack.
        count: How many.
    """
    text = hashlib.shake_256(f"{side} {matrix} {name}".encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(text, np.uint8), count=count)
    return 1.0 - 2.0 * bits.astype(np.float64)


def sign_vectors(name: str, matrix: int, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the random signs that a matrix is multiplied with from the left and from the right.

    Args:
        name: Of the tensor.
        matrix: Number of the matrix in a stack.
        shape: Of the matrix.
    """
    rows, columns = shape
    return signs(name, "left", matrix, rows), signs(name, "right", matrix, columns)


def to_words(numbers: np.ndarray, code: str) -> str:
    """Return numbers as text, in float32 or in float64."""
    return base64.b64encode(numbers.astype(_FORMATS[code][0]).tobytes()).decode()


class Words:
    """Recorded numbers, read one array after the other.

    Args:
        texts: Of ``to_words``.
        code: As there.
    """

    def __init__(self, texts: Sequence[str], code: str) -> None:
        self._texts = iter(texts)
        self._dtype, self.unit = _FORMATS[code]

    def take(self, count: int, *, finite: bool = True) -> np.ndarray:
        """Return the next array, float64.

        Args:
            count: How many numbers it has.
            finite: Whether all must be finite.

        Raises:
            ProbeError: If it is not so.
        """
        try:
            data = base64.b64decode(next(self._texts, ""), validate=True)
            found = np.frombuffer(data, self._dtype).astype(np.float64)
        except (ValueError, binascii.Error):
            found = np.zeros(0)
        if len(found) != count or (finite and not np.isfinite(found).all()):
            raise ProbeError("is not recorded as it must be")
        return found


@dataclass(frozen=True)
class Balance:
    """Tests equations between sums of recorded and of computed numbers.

    Args:
        unit: Relative error of a recorded number.
    """

    unit: float

    def equal(
        self,
        what: str,
        terms: np.ndarray,
        others: np.ndarray | float,
        slack: float = 0.0,
        *,
        most: bool = False,
    ) -> None:
        """Test that terms add up to what others add up to.

        Args:
            what: Is wrong if they do not.
            terms, others: Each a product of at most six recorded numbers.
            slack: Bound on errors other than those of recorded numbers.
            most: Whether the terms' sum may be less.

        Raises:
            ProbeError: If they do not.
        """
        others = np.atleast_1d(others)
        size = float(np.abs(terms).sum() + np.abs(others).sum())
        bound = 8 * (self.unit + UNIT) * size + slack
        sums = float(np.sum(terms)), float(np.sum(others))
        apart = sums[0] - sums[1]
        if not (apart if most else abs(apart)) <= bound < math.inf:
            raise ProbeError(
                f"{what}: {sums[0]:.9g} is not {sums[1]:.9g}, give or take {bound:.3g}"
            )


@dataclass
class WrittenProducts:
    """Products of a written matrix with vectors of signs, compared with those of the merge.

    Args:
        left, right: The vectors.
        factor: Of the merged matrix in what was added to the base.
        unit: Relative error of a recorded number.
    """

    left: np.ndarray
    right: np.ndarray
    factor: float
    unit: float

    def __post_init__(self) -> None:
        rows, columns = len(self.left), len(self.right)
        self._above, self._beside = np.zeros(columns), np.zeros(rows)
        self._column_squares, self._row_squares = np.zeros(columns), np.zeros(rows)
        self._finite = True

    @property
    def column_squares(self) -> np.ndarray:
        """Sums of the squares of the written elements of each column."""
        return self._column_squares

    def add(self, first: int, written: np.ndarray, base: np.ndarray | None) -> None:
        """Take some rows of the written matrix and of the base that is in it."""
        part = slice(first, first + len(written))
        change = written if base is None else written - base
        self._above += self.left[part] @ change
        self._beside[part] = change @ self.right
        self._column_squares += np.einsum("ij,ij->j", written, written)
        self._row_squares[part] = np.einsum("ij,ij->i", written, written)
        self._finite = self._finite and bool(np.isfinite(written).all())

    def compare(
        self, above: np.ndarray, beside: np.ndarray, reader: TensorReader, error: float = 0.0
    ) -> None:
        """Test that the products are those that were recorded.

        Args:
            above, beside: The recorded products from the left and from the right.
            reader: Of what was written; there may be nothing to compare.
            error: Bound on the distance (Frobenius norm) of the base from the one that was added.

        Raises:
            ProbeError: If a row or a column differs by more than rounding can make it.
        """
        if not (rounding := reader.rounding):
            return
        if reader.finite and not self._finite:
            raise ProbeError("has elements that are infinite or NaN")
        found = ("column", self._above, above, self._column_squares, len(self.left)), (
            "row", self._beside, beside, self._row_squares, len(self.right)
        )  # fmt: skip
        for what, own, told, squares, count in found:
            told = self.factor * told
            size = np.sqrt(squares)
            bound = SIGNS * (rounding[0] * size + rounding[1] * math.sqrt(count) + error)
            bound += 2 * self.unit * np.abs(told) + 4 * UNIT * count * math.sqrt(count) * size
            bad = np.abs(own - told) > bound
            if bad.any():
                place = int(bad.argmax())
                raise ProbeError(
                    f"{what} {place} is not the one that was merged: with random signs it adds up "
                    f"to {own[place]:.9g}, but must to {told[place]:.9g}, give or take "
                    f"{bound[place]:.3g}"
                )
