"""How task vectors of a shard agree, how far it is from its parents, what sparse methods keep.

Sums over the elements that the check recomputes, in float64 and in one fixed order: the bits depend
on the sources and the recipe alone. The report adds tensors up to layers and modules.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.interference import Comparable, Sparse, comparable
from shardmerge.algebra.samples import RUN, RUNS, Runs
from shardmerge.algebra.spec import OutputTensor
from shardmerge.check.recompute import Recomputer
from shardmerge.methods.registry import method

#: Digits that sums are written with.
_DIGITS = 10


class Statistics:
    """Collects the statistics of a shard's tensors.

    Args:
        recomputer: Evaluates expressions; what it has evaluated for the check costs nothing.
    """

    def __init__(self, recomputer: Recomputer) -> None:
        self._recomputer = recomputer
        self._labels: dict[str, int] = {}
        self._tensors: dict[str, dict[str, Any]] = {}

    def add(self, tensor: OutputTensor, runs: Runs, result: np.ndarray, *, copied: bool) -> None:
        """Take a tensor's statistics.

        Args:
            tensor: Of the shard.
            runs: Its sample, of ``sample_runs``.
            result: Those elements as the shard has them, float64.
            copied: Whether it is a copy of a source's tensor.
        """
        found = comparable(tensor.expression)
        if not (found.vectors or found.parents):
            return
        sample = _Sample(math.prod(tensor.shape), len(result))
        value = _known(lambda one: result if copied else self._recomputer.value(one, runs))
        with np.errstate(all="ignore"):
            vectors = {} if copied else self._vectors(found, value)
            parents = {label: _sum(map(value, terms)) for label, terms in found.parents.items()}
            apart = {label: result - parent for label, parent in parents.items()}
            compared = [*parents.values(), *apart.values()]
            compared += vectors.values() if len(vectors) > 1 else ()
            both = [(vectors[a], vectors[b]) for a, b in itertools.combinations(vectors, 2)]
            dots = _dots([*((one, one) for one in compared), *both], len(result))
            row = {
                "elements": sample.elements,
                "sampled": sample.size,
                "kept": self._kept_rows(vectors, _kept(found, tensor, value)),
                "pairs": self._pair_rows(vectors, dots, sample),
                "parents": self._parent_rows(parents, apart, dots, sample),
            }
        if row["kept"] or row["pairs"] or row["parents"]:
            self._tensors[tensor.name] = row

    def to_json(self) -> dict[str, Any]:
        """Return what was collected, as JSON-able data."""
        return {"labels": list(self._labels), "tensors": self._tensors}

    def _label(self, label: str) -> int:
        return self._labels.setdefault(label, len(self._labels))

    @staticmethod
    def _vectors(found: Comparable, value: _Value) -> dict[str, np.ndarray]:
        """Return the sampled elements of each task vector that is finite there."""
        vectors = {}
        for label, vector in found.vectors.items():
            values = value(vector.value)
            if vector.base is not None:
                values = values - value(vector.base)
            if np.isfinite(values).all():
                vectors[label] = values
        return vectors

    def _kept_rows(
        self, vectors: Mapping[str, np.ndarray], kept: Mapping[str, int]
    ) -> list[list[Any]]:
        return [
            [self._label(label), kept[label], int(np.count_nonzero(v))]
            for label, v in vectors.items()
            if label in kept
        ]

    def _pair_rows(
        self, vectors: Mapping[str, np.ndarray], dots_of: _Dots, sample: _Sample
    ) -> list[list[Any]]:
        rows: list[list[Any]] = []
        if len(vectors) < 2:
            return rows
        above, below = ({k: f(v) for k, v in vectors.items()} for f in (_positive, _negative))
        for a, b in itertools.combinations(vectors, 2):
            dots = dots_of(vectors[a], vectors[b])
            squares = [dots_of(vectors[one], vectors[one]) for one in (a, b)]
            agree = np.count_nonzero(above[a] & above[b]) + np.count_nonzero(below[a] & below[b])
            other = np.count_nonzero(above[a] & below[b]) + np.count_nonzero(below[a] & above[b])
            sums = [math.fsum(part.tolist()) for part in (dots, *squares)]
            error = sample.error(_cosine_parts(dots, *squares, sums))
            labels = self._label(a), self._label(b)
            rows.append(
                [*labels, *map(_short, sums), int(agree), int(agree + other), _short(error)]
            )
        return [row for row in rows if all(map(math.isfinite, row))]

    def _parent_rows(
        self,
        parents: Mapping[str, np.ndarray],
        apart: Mapping[str, np.ndarray],
        dots_of: _Dots,
        sample: _Sample,
    ) -> list[list[Any]]:
        rows = []
        for label, parent in parents.items():
            distances, squares = (dots_of(one, one) for one in (apart[label], parent))
            sums = [math.fsum(distances.tolist()), math.fsum(squares.tolist())]
            error = sample.error(_distance_parts(distances, squares, sums))
            rows.append([self._label(label), *map(_short, sums), _short(error)])
        return [row for row in rows if all(map(math.isfinite, row))]


#: Returns the sampled elements of an expression.
_Value = Callable[[ex.Expression], np.ndarray]
#: Returns the dot products of every run of two arrays, float64 [runs].
_Dots = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _known(compute: _Value) -> _Value:
    found: dict[ex.Expression, np.ndarray] = {}

    def value(expression: ex.Expression) -> np.ndarray:
        if expression not in found:
            found[expression] = compute(expression)
        return found[expression]

    return value


class _Sample(NamedTuple):
    """How many elements a tensor has, and how many of them are looked at."""

    elements: int
    size: int

    def error(self, parts: np.ndarray) -> float:
        """Return the standard error of a statistic from each run's part in its deviation.

        Runs are drawn from the tensor without repeats, as whole clusters: Cochran 1977, "Sampling
        Techniques", sections 2.9 and 9A.
        """
        left = 1 - self.size / self.elements
        if left <= 0:
            return 0.0
        return math.sqrt(left * RUNS / (RUNS - 1) * math.fsum((parts * parts).tolist()))


def _sum(parts: Iterable[np.ndarray]) -> np.ndarray:
    return functools.reduce(np.add, parts)


def _dots(pairs: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> _Dots:
    """Find the dot products of pairs of arrays in one go, those of the same arrays once.

    Args:
        pairs: Arrays that are kept as long as they are asked for.
        count: Elements of each.
    """
    distinct = {(id(a), id(b)): (a, b) for a, b in pairs}
    products = np.empty((len(distinct), count))
    for (a, b), row in zip(distinct.values(), products, strict=True):
        np.multiply(a, b, out=row)
    sums = dict(zip(distinct, run_sums(products), strict=True))
    return lambda a, b: sums[id(a), id(b)]


def run_sums(values: np.ndarray) -> np.ndarray:
    """Return the sum of every run of a sample, added by halves: the same bits on every processor.

    Args:
        values: float64 [..., elements], all runs of RUN but the last.

    Returns:
        float64 [..., runs].
    """
    *before, count = values.shape
    runs = -(-count // RUN)
    if lacks := runs * RUN - count:
        values = np.concatenate([values, np.zeros((*before, lacks))], axis=-1)
    values = values.reshape(*before, runs, RUN)
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def _cosine_parts(dots: np.ndarray, a: np.ndarray, b: np.ndarray, sums: list[float]) -> np.ndarray:
    """Return each run's part in the deviation of a cosine, to first order."""
    dot, square_a, square_b = sums
    if not (square_a and square_b):
        return np.zeros(len(dots))
    length = math.sqrt(square_a) * math.sqrt(square_b)
    return dots / length - dot / length / 2 * (a / square_a + b / square_b)


def _distance_parts(distances: np.ndarray, squares: np.ndarray, sums: list[float]) -> np.ndarray:
    """Return each run's part in the deviation of a relative distance, to first order."""
    distance, square = sums
    if not (distance and square):
        return np.zeros(len(distances))
    return math.sqrt(distance / square) / 2 * (distances / distance - squares / square)


def _kept(found: Comparable, tensor: OutputTensor, value: _Value) -> dict[str, int]:
    """Return how many sampled elements of each task vector a sparse method lets in."""
    kept: dict[str, int] = {}
    for sparse in found.calls:
        for label, count in _kept_by(sparse, tensor, value).items():
            kept.setdefault(label, count)
    return kept


def _kept_by(sparse: Sparse, tensor: OutputTensor, value: _Value) -> dict[str, int]:
    says = method(sparse.call.method).kept
    if says is None:
        return {}
    values = [value(one) for one in sparse.call.inputs]
    if not all(np.isfinite(one).all() for one in values):
        return {}
    count = len(values[0])
    shape = tensor.shape if count == math.prod(tensor.shape) else (-1, RUN)
    if len(tensor.shape) < 2 or (count % RUN and shape[0] == -1):
        shape = (count,)
    masks = says(group_of(sparse.call, [one.reshape(shape) for one in values]))
    return {
        label: int(np.count_nonzero(masks[i]))
        for i, label in enumerate(sparse.labels)
        if label is not None and i in masks
    }


def _positive(values: np.ndarray) -> np.ndarray:
    return values > 0


def _negative(values: np.ndarray) -> np.ndarray:
    return values < 0


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
