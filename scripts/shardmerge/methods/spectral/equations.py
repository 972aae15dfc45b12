"""Tests what was recorded of a decomposition, by products with random vectors alone.

Of a matrix ``D = U S V'`` (``'`` transposes) the singular values ``S`` are recorded, and for random
signs ``w`` and ``x`` the numbers ``a = U'w`` and ``b = V'x``. So these hold:

    sum(a S b) = w'D x    sum(a^2 S^2) = |D'w|^2    sum(b^2 S^2) = |D x|^2    sum(S^2) = |D|^2

and ``sum(a^2)`` or ``sum(b^2)`` is the number of rows or columns. The right sides are computed from
the sources. By then ``c = C'w`` is known of the singular vectors ``C`` that are kept. Of their
decomposition ``C = A R B'`` and of the nearest orthonormal matrix ``P = A B'``, the numbers ``R``,
``a = A'w`` and ``p = P'w`` are recorded, and these hold:

    sum(R^2 a^2) = |c|^2    sum(R a^2) = p'c    sum(a^2) = |p|^2    sum(R^2) = number of vectors

Of a merged matrix ``M = P diag(f) Q'`` the products ``y = M'w`` and ``z = M x`` are recorded. With
``q = Q'x`` it has

    sum(p f q) = y'x = w'z    sum(p^2 f^2) = |y|^2    sum(q^2 f^2) = |z|^2

where ``f`` is computed from the singular values as the method says. At last ``y`` and ``z`` are
compared with the columns and the rows of the written tensor. An error of LAPACK's is that of a
matrix within ``n * u * s_1`` of the given one, so that no gap between singular values matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.probes import (
    BOTH_SIGNS,
    SIGNS,
    UNIT,
    Balance,
    ProbeError,
    UndecidedProbeError,
    Words,
)

#: Of bounds on LAPACK's errors.
SPARE = 8.0


@dataclass
class MatrixProducts:
    """Products of a matrix with vectors of random signs.

    Args:
        above: Vectors times the matrix, [vectors, columns]; the first is of signs.
        beside: The matrix times signs, [rows].
        squares: Sum of the squares of its elements.
        error: Bound on its distance (Frobenius norm) from the matrix of the merge.
    """

    above: np.ndarray
    beside: np.ndarray
    squares: float = 0.0
    error: float = 0.0

    def add(self, vectors: np.ndarray, right: np.ndarray, first: int, rows: np.ndarray) -> None:
        """Take some rows of the matrix."""
        part = slice(first, first + len(rows))
        self.above += vectors[:, part] @ rows
        self.beside[part] = rows @ right
        self.squares += float(np.vdot(rows, rows))


@dataclass
class Spectrum:
    """Recorded singular values, and products of the singular vectors.

    Args:
        values: Descending.
        left, right: MatrixProducts with random signs, ``U'w`` and ``V'x``.
        rank: How many values are not 0.
    """

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray
    rank: int

    def first(self, keep: int) -> Spectrum:
        """Return the first singular vectors, at most so many, whose values are not 0."""
        count = min(keep, self.rank)
        return Spectrum(self.values[:count], self.left[:count], self.right[:count], count)


@dataclass
class Factored:
    """A merged matrix as its factors: ``P diag(values) Q'``.

    Args:
        values: One for each column of the factors.
        left, right: ``P'w`` and ``Q'x``.
        full: Whether the columns of ``P`` and of ``Q`` are orthonormal; of others some depend on
            each other.
    """

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray
    full: tuple[bool, bool] = (True, True)


@dataclass
class MatrixProbe:
    """What is known of one matrix.

    Args:
        group: What was merged.
        shape: Of the matrix.
        words: What was recorded.
        left, right: Vectors of random signs.
        projected: The left one projected, for methods that record that.
        parts: Products of each weighted task matrix.
        total: Products of their sum.
    """

    group: Group
    shape: tuple[int, int]
    words: Words
    left: np.ndarray
    right: np.ndarray
    projected: np.ndarray | None = None
    parts: list[MatrixProducts] = field(default_factory=list)
    total: MatrixProducts | None = None

    @property
    def balance(self) -> Balance:
        """Tests equations."""
        return Balance(self.words.unit)

    def take(self, count: int, number: int = 3) -> list[np.ndarray]:
        """Return the next recorded arrays of so many numbers."""
        return [self.words.take(count) for _ in range(number)]

    def noise(self, largest: float) -> float:
        """Return what LAPACK may add to a matrix with a largest singular value."""
        return max(self.shape) * UNIT * largest


def spectrum_of(
    probe: MatrixProbe,
    what: str,
    above: np.ndarray,
    error: float,
    *,
    matrix: MatrixProducts | None = None,
    scale: float = 0.0,
) -> Spectrum:
    """Return the next recorded singular values, verified.

    Args:
        probe: Of the matrix.
        what: Was decomposed.
        above: Random signs times it.
        error: Bound on its distance from the one of the merge.
        matrix: Its products, if there are more.
        scale: Norm of what it is a difference of.
    """
    values, left, right = probe.take(min(probe.shape))
    _check_order(values, f"the singular values of {what}")
    zero = probe.noise(max(float(values.max(initial=0.0)), scale))
    length, equal = math.sqrt(max(probe.shape)), probe.balance.equal
    apart = SIGNS * error + SPARE * zero * length
    slack = BOTH_SIGNS * error + apart * length
    told = f"{what} has other singular vectors"
    equal(told, left * values * right, float(above @ probe.right), slack)
    told = f"{what} has other singular values"
    _equal_squares(probe, told, left * values, above, apart)
    if matrix:
        _equal_squares(probe, told, right * values, matrix.beside, apart)
        apart = error + SPARE * math.sqrt(len(values)) * zero
        norm = math.sqrt(matrix.squares)
        equal(told, values**2, matrix.squares, 2 * norm * apart + apart**2)
    for products, count in zip((left, right), probe.shape, strict=True):
        told, slack = f"{what} has no such singular vectors", SPARE * probe.noise(1.0) * count
        equal(told, products**2, count, slack, most=len(values) < count)
    return Spectrum(values, left, right, _rank(values, zero))


def _check_order(values: np.ndarray, what: str) -> None:
    """Test that singular values are such, and descend."""
    if (values < 0).any() or (values[1:] > values[:-1]).any():
        raise ProbeError(f"{what} are not in order")


def _equal_squares(
    probe: MatrixProbe, what: str, terms: np.ndarray, vector: np.ndarray, apart: float
) -> None:
    """Test that two vectors have the same length, one of them but for a vector of a length."""
    norm = float(np.linalg.norm(vector))
    probe.balance.equal(what, terms**2, norm**2, 2 * norm * apart + apart**2)


def _rank(values: np.ndarray, zero: float) -> int:
    """Return how many singular values are not 0."""
    if (np.abs(values - zero) <= 1e-6 * zero).any() and zero:
        raise UndecidedProbeError
    return int((values > zero).sum())


def nearest_of(probe: MatrixProbe, given: np.ndarray, side: str) -> tuple[np.ndarray, bool]:
    """Return products of the nearest orthonormal matrix, and whether all columns are independent.

    Args:
        probe: Of the matrix.
        given: Products of its columns with random signs.
        side: A word for them.
    """
    count, balance = len(given), probe.balance
    rows = probe.shape[side == "right"]
    if not count:
        return given, True
    values, found, made = probe.take(count)
    what = f"the decorrelated {side} singular vectors"
    _check_order(values, what)
    zero = rows * UNIT * float(values[0])
    rank, slack = _rank(values, zero), SPARE * zero * rows * max(float(values[0]), 1.0)
    kept = np.arange(count) < rank
    balance.equal(what, values**2, count, SPARE * zero * count)
    balance.equal(what, (values * found) ** 2, float(given @ given), slack)
    balance.equal(what, values * found**2 * kept - made * given, 0.0, slack)
    balance.equal(what, found**2 * kept, float(made @ made), slack)
    balance.equal(what, found**2, rows, slack, most=count < rows)
    return made, rank == count


def check_projection(probe: MatrixProbe, common: Spectrum) -> None:
    """Test the projection of the left random vector on left singular vectors of the sum."""
    projected, total, balance = probe.projected, probe.total, probe.balance
    squares, above = common.left**2, total.above[1]
    what, spare = "the common subspace", SPARE * probe.noise(1.0) * max(probe.shape)
    balance.equal(what, projected**2, squares, spare)
    balance.equal(what, projected * probe.left, squares, spare)
    largest = float(common.values.max(initial=0.0))
    apart = SIGNS * total.error + spare * largest
    apart += probe.words.unit * math.sqrt(total.squares) * float(np.linalg.norm(projected))
    products = common.left * common.values
    _equal_squares(probe, what, products, above, apart)
    length = SIGNS * math.sqrt(probe.shape[1])
    balance.equal(what, above * probe.right, products * common.right, apart * length)


def check_merged(probe: MatrixProbe, made: Factored, above: np.ndarray, beside: np.ndarray) -> None:
    """Test products of the merged matrix."""
    largest = float(np.abs(made.values).max(initial=0.0))
    slack = SPARE * probe.noise(largest) * max(probe.shape)
    mixed, equal = made.left * made.values * made.right, probe.balance.equal
    equal("the merged matrix", above * probe.right, mixed, slack)
    equal("the merged matrix", beside * probe.left, mixed, slack)
    # |y|^2 depends on Q alone to be orthonormal, |z|^2 on P
    for factor, found, full in (
        (made.left, above, made.full[1]),
        (made.right, beside, made.full[0]),
    ):
        terms = (factor * made.values) ** 2
        what = "the singular values of the merged matrix"
        equal(what, found**2, terms, slack * largest, most=not full)
