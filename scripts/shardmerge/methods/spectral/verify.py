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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shardmerge.methods.contract import Group, Recorded
from shardmerge.methods.probes import (
    BOTH_SIGNS,
    SIGNS,
    UNIT,
    Balance,
    ProbeError,
    Sampled,
    TensorReader,
    UndecidedProbeError,
    Words,
    WrittenProducts,
    signs,
)

#: Of bounds on LAPACK's errors.
_SPARE = 8.0


@dataclass
class MatrixProducts:
    """MatrixProducts of a matrix with vectors of random signs.

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
        parts: MatrixProducts of each weighted task matrix.
        total: MatrixProducts of their sum.
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


#: Yields the factors that a merged matrix may have: more than one where rounding leaves it open.
_Factors = Callable[[MatrixProbe], Iterator[Factored]]


@dataclass(frozen=True)
class MatrixRule:
    """How a method's matrices are verified.

    Args:
        factors: Verifies what was recorded of decompositions.
        projects: Whether a projection of the left random vector is recorded first.
        divides: Whether a matrix is decomposed only if each of n models can keep an n-th of its
            singular values.
    """

    factors: _Factors
    projects: bool = False
    divides: bool = False


def verified(
    group: Group, recorded: Recorded | None, reader: TensorReader, rule: MatrixRule, *, mean: bool
) -> Sampled:
    """Return sampled elements of a merged tensor, after what was recorded has been verified.

    Args:
        group: What was merged; its tensors are not looked at.
        recorded: Of the tensor, if anything is.
        reader: Reads inputs and the written tensor.
        rule: Of the method.
        mean: Whether what is not decomposed gets the mean of the task vectors, not their sum.

    Raises:
        ProbeError: If anything recorded or written is wrong.
        UndecidedProbeError: If it cannot be told, as nothing was recorded.
    """
    plain = _plain(group, reader, mean)
    if not (group.parameters["decompose"] and group.others and len(group.shape) in (2, 3)):
        return plain
    rows, columns = group.shape[-2:]
    if rule.divides and min(rows, columns) < len(group.others):
        return plain
    if recorded is None:
        raise UndecidedProbeError
    stack = group.count // (rows * columns)
    if len(recorded.matrices) != stack:
        raise ProbeError("is not recorded as it must be")
    elements = Words([recorded.elements], reader.code)
    made = elements.take(len(reader.places), finite=False)
    base, factor = reader.sample(group.base), group.parameters["lambda"]
    value, error = base.value + factor * made, base.error + np.abs(factor * made) * elements.unit
    for number, texts in enumerate(recorded.matrices):
        if not _verify(group, texts, reader, rule, number):
            inside = reader.places // (rows * columns) == number
            value[inside], error[inside] = plain.value[inside], plain.error[inside]
    return Sampled(value, error)


def _plain(group: Group, reader: TensorReader, mean: bool) -> Sampled:
    """Return what is made of elements that are not decomposed."""
    base = reader.sample(group.base)
    count = max(len(group.others), 1) if mean else 1
    factor = group.parameters["lambda"] / count
    value, error, size = base.value.copy(), base.error.copy(), np.abs(base.value)
    for i in group.others:
        one, weight = reader.sample(i), group.per_input["weight"][i] * factor
        value += weight * (one.value - base.value)
        error += abs(weight) * (one.error + base.error)
        size += abs(weight) * (np.abs(one.value) + np.abs(base.value))
    return Sampled(value, error + (len(group.others) + 4) * UNIT * size, plain=True)


def _verify(
    group: Group, texts: Sequence[str], reader: TensorReader, rule: MatrixRule, number: int
) -> bool:
    """Verify one matrix; return whether it was decomposed, as one with infinite values is not."""
    words = Words(texts, reader.code)
    rows, columns = shape = group.shape[-2:]
    left, right = (
        signs(group.name, side, number, count)
        for side, count in zip(("left", "right"), shape, strict=True)
    )
    probe = MatrixProbe(group, shape, words, left, right)
    if rule.projects:
        # nothing is recorded of what is not finite
        probe.projected = words.take(rows) if texts else np.zeros(rows)
    written = WrittenProducts(left, right, group.parameters["lambda"], words.unit)
    if not _add_up(probe, reader, number, written):
        return False
    candidates = list(rule.factors(probe))
    above, beside = words.take(columns), words.take(rows)
    _any(lambda made: _test_merged(probe, made, above, beside), candidates)
    written.compare(above, beside, reader, reader.error(group.base))
    return True


def _add_up(
    probe: MatrixProbe, reader: TensorReader, number: int, written: WrittenProducts
) -> bool:
    """Find the products of the inputs and of the written matrix; return whether all are finite."""
    group, (rows, columns) = probe.group, probe.shape
    vectors = np.stack([v for v in (probe.left, probe.projected) if v is not None])

    def empty() -> MatrixProducts:
        return MatrixProducts(np.zeros((len(vectors), columns)), np.zeros(rows))

    probe.parts, probe.total = [empty() for _ in group.others], empty()
    inputs, begin = range(len(group.tensors)), number * rows
    each = [(part, i, group.per_input["weight"][i]) for part, i in zip(
        probe.parts, group.others, strict=True)]  # fmt: skip
    blocks = reader.rows(inputs, begin, begin + rows, written=reader.rounding is not None)
    for first, found in blocks:
        base, total = found[group.base], 0.0
        if not all(np.isfinite(one).all() for one in found[: len(inputs)]):
            return False
        for part, i, weight in each:
            change = found[i] - base
            change *= weight
            part.add(vectors, probe.right, first - begin, change)
            total = total + change
        probe.total.add(vectors, probe.right, first - begin, total)
        if len(found) > len(inputs):
            written.add(first - begin, found[-1], base)
    for part, i, weight in each:
        part.error = abs(weight) * (reader.error(i) + reader.error(group.base))
    probe.total.error = math.fsum(part.error for part in probe.parts)
    return True


def _any(test: Callable[[Factored], None], candidates: Sequence[Factored]) -> None:
    """Test candidates until one is right.

    Raises:
        ProbeError: Of the first, if none is.
    """
    errors = []
    for one in candidates:
        try:
            return test(one)
        except ProbeError as error:
            errors.append(error)
    raise errors[0]


def _spectrum(
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
    balance, (rows, columns) = probe.balance, probe.shape
    values, left, right = probe.take(min(probe.shape))
    if (values < 0).any() or (values[1:] > values[:-1]).any():
        raise ProbeError(f"the singular values of {what} are not in order")
    largest = float(values.max(initial=0.0))
    zero, length = probe.noise(max(largest, scale)), math.sqrt(max(probe.shape))
    norm = float(np.linalg.norm(above))
    apart = SIGNS * error + _SPARE * zero * length
    balance.equal(
        f"{what} has other singular vectors", left * values * right, float(above @ probe.right),
        BOTH_SIGNS * error + apart * length,
    )  # fmt: skip
    balance.equal(
        f"{what} has other singular values", (left * values) ** 2, norm**2,
        2 * norm * apart + apart**2,
    )  # fmt: skip
    if matrix:
        norm = float(np.linalg.norm(matrix.beside))
        balance.equal(
            f"{what} has other singular values", (right * values) ** 2, norm**2,
            2 * norm * apart + apart**2,
        )  # fmt: skip
        apart = error + _SPARE * math.sqrt(len(values)) * zero
        norm = math.sqrt(matrix.squares)
        balance.equal(
            f"{what} has other singular values", values**2, norm**2, 2 * norm * apart + apart**2
        )
    for products, count in ((left, rows), (right, columns)):
        balance.equal(
            f"the singular vectors of {what} are not orthonormal", products**2, count,
            _SPARE * probe.noise(1.0) * count, most=len(values) < count,
        )  # fmt: skip
    return Spectrum(values, left, right, _rank(values, zero))


def _rank(values: np.ndarray, zero: float) -> int:
    """Return how many singular values are not 0."""
    if (np.abs(values - zero) <= 1e-6 * zero).any() and zero:
        raise UndecidedProbeError
    return int((values > zero).sum())


def _nearest(probe: MatrixProbe, given: np.ndarray, side: str) -> tuple[np.ndarray, bool]:
    """Return products of the nearest orthonormal matrix, and whether all columns are independent.

    Args:
        probe: Of the matrix.
        given: MatrixProducts of its columns with random signs.
        side: A word for them.
    """
    count, balance = len(given), probe.balance
    rows = probe.shape[side == "right"]
    if not count:
        return given, True
    values, found, made = probe.take(count)
    what = f"the decorrelated {side} singular vectors"
    if (values < 0).any() or (values[1:] > values[:-1]).any():
        raise ProbeError(f"{what} are not in order")
    zero = rows * UNIT * float(values[0])
    rank, slack = _rank(values, zero), _SPARE * zero * rows * max(float(values[0]), 1.0)
    kept = np.arange(count) < rank
    balance.equal(what, values**2, count, _SPARE * zero * count)
    balance.equal(what, (values * found) ** 2, float(given @ given), slack)
    balance.equal(what, values * found**2 * kept - made * given, 0.0, slack)
    balance.equal(what, found**2 * kept, float(made @ made), slack)
    balance.equal(what, found**2, rows, slack, most=count < rows)
    return made, rank == count


def _test_merged(probe: MatrixProbe, made: Factored, above: np.ndarray, beside: np.ndarray) -> None:
    """Test products of the merged matrix."""
    largest = float(np.abs(made.values).max(initial=0.0))
    slack = _SPARE * probe.noise(largest) * max(probe.shape)
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


def _tsv_m(probe: MatrixProbe) -> Iterator[Factored]:
    keep = min(probe.shape) // len(probe.parts)
    kept = [
        _spectrum(probe, f"task matrix {i}", one.above[0], one.error, matrix=one).first(keep)
        for i, one in enumerate(probe.parts)
    ]
    yield _decorrelated(probe, kept, np.concatenate([one.values for one in kept]))


def _iso_c(probe: MatrixProbe) -> Iterator[Factored]:
    found = _of_total(probe)
    mean = found.values[: found.rank].sum() / len(found.values)
    yield Factored(np.where(np.arange(len(found.values)) < found.rank, mean, 0.0), found.left,
                   found.right)  # fmt: skip


def _subspace_boosting(probe: MatrixProbe) -> Iterator[Factored]:
    found = _of_total(probe)
    values, beta = found.values[: found.rank], probe.group.parameters["beta"]
    if not len(values):
        yield Factored(np.zeros(len(found.values)), found.left, found.right)
        return
    shares = values.cumsum() / values.sum()
    doubt = 4 * probe.words.unit + _SPARE * len(values) * probe.noise(values[0]) / values.sum()
    places = {int((shares < beta + d).sum()) for d in ((0, -doubt, doubt) if beta else (0,))}
    for place in sorted(places):
        least = values[min(place, len(values) - 1)]
        made = np.zeros(len(found.values))
        made[: found.rank] = np.maximum(values, least)
        yield Factored(made, found.left, found.right)


def _of_total(probe: MatrixProbe) -> Spectrum:
    total = probe.total
    return _spectrum(probe, "the sum", total.above[0], total.error, matrix=total)


def _iso_cts(probe: MatrixProbe) -> Iterator[Factored]:
    count, models = min(probe.shape), len(probe.parts)
    wanted = count - int(probe.group.parameters["common"] * count)
    own = min(round(wanted / models), count // models)
    kept = [_of_total(probe).first(count - own * models)]
    _test_projection(probe, kept[0])
    for i, one in enumerate(probe.parts):
        norm = math.sqrt(one.squares)
        error = one.error + probe.words.unit * norm * float(np.linalg.norm(probe.projected)) / SIGNS
        rest, what = one.above[0] - one.above[1], f"what task matrix {i} adds"
        kept.append(_spectrum(probe, what, rest, error, scale=norm).first(own))
    values = np.concatenate([one.values for one in kept])
    mean = values.mean() if len(values) else 0.0
    yield _decorrelated(probe, kept, np.full(len(values), mean))


def _test_projection(probe: MatrixProbe, common: Spectrum) -> None:
    """Test the projection of the left random vector on left singular vectors of the sum."""
    projected, total, balance = probe.projected, probe.total, probe.balance
    squares, above = common.left**2, total.above[1]
    what, spare = "the common subspace", _SPARE * probe.noise(1.0) * max(probe.shape)
    balance.equal(what, projected**2, squares, spare)
    balance.equal(what, projected * probe.left, squares, spare)
    largest = float(common.values.max(initial=0.0))
    apart = SIGNS * total.error + spare * largest
    apart += probe.words.unit * math.sqrt(total.squares) * float(np.linalg.norm(projected))
    norm, products = float(np.linalg.norm(above)), common.left * common.values
    balance.equal(what, above**2, products**2, 2 * norm * apart + apart**2)
    length = SIGNS * math.sqrt(probe.shape[1])
    balance.equal(what, above * probe.right, products * common.right, apart * length)


def _decorrelated(probe: MatrixProbe, kept: Sequence[Spectrum], values: np.ndarray) -> Factored:
    left, left_full = _nearest(probe, np.concatenate([one.left for one in kept]), "left")
    right, right_full = _nearest(probe, np.concatenate([one.right for one in kept]), "right")
    return Factored(values, left, right, (left_full, right_full))


#: By the method's name.
MATRIX_RULES: Mapping[str, MatrixRule] = {
    "tsv_m": MatrixRule(_tsv_m, divides=True),
    "iso_c": MatrixRule(_iso_c),
    "iso_cts": MatrixRule(_iso_cts, projects=True),
    "subspace_boosting": MatrixRule(_subspace_boosting),
}
