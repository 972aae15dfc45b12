"""What the methods' definitions say of the factors of a merged matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardmerge.methods.kernels.probes import SIGNS
from shardmerge.methods.spectral.equations import (
    SPARE,
    Factored,
    MatrixProbe,
    Spectrum,
    check_projection,
    nearest_of,
    spectrum_of,
)

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


def _tsv_m(probe: MatrixProbe) -> Iterator[Factored]:
    keep = min(probe.shape) // len(probe.parts)
    kept = [
        spectrum_of(probe, f"task matrix {i}", one.above[0], one.error, matrix=one).first(keep)
        for i, one in enumerate(probe.parts)
    ]
    yield _decorrelated(probe, kept, np.concatenate([one.values for one in kept]))


def _iso_c(probe: MatrixProbe) -> Iterator[Factored]:
    found = _of_total(probe)
    mean = found.values[: found.rank].sum() / len(found.values)
    values = np.where(np.arange(len(found.values)) < found.rank, mean, 0.0)
    yield Factored(values, found.left, found.right)


def _subspace_boosting(probe: MatrixProbe) -> Iterator[Factored]:
    found = _of_total(probe)
    values, beta = found.values[: found.rank], probe.group.parameters["beta"]
    if not len(values):
        yield Factored(np.zeros(len(found.values)), found.left, found.right)
        return
    shares = values.cumsum() / values.sum()
    doubt = 4 * probe.words.unit + SPARE * len(values) * probe.noise(values[0]) / values.sum()
    places = {int((shares < beta + d).sum()) for d in ((0, -doubt, doubt) if beta else (0,))}
    for place in sorted(places):
        least = values[min(place, len(values) - 1)]
        made = np.zeros(len(found.values))
        made[: found.rank] = np.maximum(values, least)
        yield Factored(made, found.left, found.right)


def _of_total(probe: MatrixProbe) -> Spectrum:
    total = probe.total
    return spectrum_of(probe, "the sum", total.above[0], total.error, matrix=total)


def _iso_cts(probe: MatrixProbe) -> Iterator[Factored]:
    count, models = min(probe.shape), len(probe.parts)
    wanted = count - int(probe.group.parameters["common"] * count)
    own = min(round(wanted / models), count // models)
    kept = [_of_total(probe).first(count - own * models)]
    check_projection(probe, kept[0])
    for i, one in enumerate(probe.parts):
        norm = math.sqrt(one.squares)
        error = one.error + probe.words.unit * norm * float(np.linalg.norm(probe.projected)) / SIGNS
        rest, what = one.above[0] - one.above[1], f"what task matrix {i} adds"
        kept.append(spectrum_of(probe, what, rest, error, scale=norm).first(own))
    values = np.concatenate([one.values for one in kept])
    mean = values.mean() if len(values) else 0.0
    yield _decorrelated(probe, kept, np.full(len(values), mean))


def _decorrelated(probe: MatrixProbe, kept: Sequence[Spectrum], values: np.ndarray) -> Factored:
    left, left_full = nearest_of(probe, np.concatenate([one.left for one in kept]), "left")
    right, right_full = nearest_of(probe, np.concatenate([one.right for one in kept]), "right")
    return Factored(values, left, right, (left_full, right_full))


#: By the method's name.
MATRIX_RULES: Mapping[str, MatrixRule] = {
    "tsv_m": MatrixRule(_tsv_m, divides=True),
    "iso_c": MatrixRule(_iso_c),
    "iso_cts": MatrixRule(_iso_cts, projects=True),
    "subspace_boosting": MatrixRule(_subspace_boosting),
}
