"""Tests a file of LoRA factors by bounds: bits of singular values depend on the library.

Of each module: the factors miss the update by what was recorded, in float64; they are balanced and
orthogonal, as singular vectors are; and, where all singular values were computed, what they miss
has no part that is larger than the smallest value that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shardmerge.algebra.factorization import FactorModule, FactorRecord, FactorSpec, ModuleRecord
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.engine.decompose import Pair, concatenated, squared_error
from shardmerge.engine.factors import UpdateFile

#: Relative size of an element's rounding error, by the type's code.
_ROUNDING = {"F32": 2.0**-24, "BF16": 2.0**-9, "F16": 2.0**-11}
#: Of singular vectors in float32, and of two ways to add up a sum.
_VECTORS, _NORMS, _SUMS = 1e-4, 1e-5, 1e-6
#: Of merges in a shared space that are computed anew.
_CHOICES = 0.02
_STEPS = 12
_AGAIN = "Delete it and run the workflow again, which makes it anew."


def check_factors(
    spec: FactorSpec, update: Path, factors: Path, record: FactorRecord
) -> dict[str, Any]:
    """Return what the check of a file of factors found.

    Args:
        spec: What the file is.
        update: The file of updates that it was made from.
        factors: The file.
        record: Of the job that wrote it.

    Raises:
        UserError: If it is not as it was written or not what was asked for; names the module.
    """
    if sha256_of(factors) != record.sha256:
        raise UserError("is not as it was written", str(factors), _AGAIN)
    if [m.name for m in record.modules] != [m.name for m in spec.modules]:
        raise UserError("its record is of other modules", str(factors), _AGAIN)
    updates, made = UpdateFile(update), UpdateFile(factors)
    largest = 0.0
    for module, told in zip(spec.modules, record.modules, strict=True):
        for fault, share in _faults(spec, module, told, updates, made):
            largest = max(largest, share)
            if not share <= 1.0:
                raise UserError(f"module {module.name!r}: {fault}", str(factors), _AGAIN)
    for tensor, name in spec.saved:
        if not _equal(updates.tensor(tensor), made.tensor(name)):
            raise UserError(f"tensor {name!r} is not the model's", str(factors), _AGAIN)
    return {
        "spec": record.spec,
        "sha256": record.sha256,
        "modules": len(spec.modules),
        "saved": len(spec.saved),
        "largest_share_of_bounds": largest,
    }


def _faults(
    spec: FactorSpec,
    module: FactorModule,
    told: ModuleRecord,
    updates: UpdateFile,
    made: UpdateFile,
) -> list[tuple[str, float]]:
    """Return what could be wrong with a module, each with the share of its bound that was found."""
    with torch.no_grad():
        wholes = _wholes(module, updates)
        if not told.rank:
            zero = math.sqrt(sum(_squares(whole) for whole in wholes))
            return [("has an update and no factors", 0.0 if zero <= _SUMS * told.norm else 2.0)]
        pairs = _split(module, [made.tensor(name) for name in module.outputs], len(wholes))
        scale = 1.0 if spec.alpha is None else spec.alpha / told.rank
        squares = sum(_squares(whole) for whole in wholes)
        missed = sum(squared_error(w, *p, scale) for w, p in zip(wholes, pairs, strict=True))
        norm, error = math.sqrt(squares), math.sqrt(missed)
        # a method may choose other elements where two are equal but for rounding
        same, sums = (_CHOICES, _CHOICES) if module.merge else (_NORMS, _SUMS)
        found = [
            ("the update is not the one that was recorded", _share(norm, told.norm, norm * same)),
            ("misses by another error than recorded", _share(error, told.error, norm * sums)),
        ]
        if spec.decomposition == "concatenate":
            bound = _ROUNDING[spec.dtype] * _lengths(pairs, scale) * 2 + norm * sums
            return [*found, ("is not the sum of its adapters", error / bound if bound else 0.0)]
        counts = told.kept or (len(told.values),)
        first = 0
        for whole, pair, count in zip(wholes, pairs, counts, strict=True):
            values = torch.tensor(told.values[first : first + count], dtype=torch.float64)
            first += count
            if count:
                found += _singular(spec, pair, values, scale)
            if count and spec.decomposition == "exact" and not module.merge:
                found.append(_left_out(spec, whole, pair, values, scale))
        return found


def _singular(
    spec: FactorSpec, pair: Pair, values: torch.Tensor, scale: float
) -> list[tuple[str, float]]:
    b, a = (factor.double() for factor in pair)
    count, rank = len(values), len(a)
    wanted = torch.zeros(rank, rank, dtype=torch.float64)
    wanted[range(count), range(count)] = values / scale
    rounding = 4 * _ROUNDING[spec.dtype]
    bound = (_VECTORS + rounding) * float(values[0]) / scale
    return [
        ("its factors are not singular vectors", float((product - wanted).abs().max()) / bound)
        for product in (a @ a.t(), b.t() @ b)
    ]


def _left_out(
    spec: FactorSpec, whole: torch.Tensor | Pair, pair: Pair, values: torch.Tensor, scale: float
) -> tuple[str, float]:
    """Return how the largest part that factors miss compares with the smallest that they keep."""
    b, a = (factor.double() for factor in pair)
    rounding = 4 * _ROUNDING[spec.dtype] * math.sqrt(len(a))
    limit = float(values[-1]) + (_VECTORS + rounding) * float(values[0])
    return "a larger part of the update was left out", _spectral_norm(whole, b, a, scale) / limit


def _spectral_norm(
    whole: torch.Tensor | Pair, b: torch.Tensor, a: torch.Tensor, scale: float
) -> float:
    """Return a lower bound of the largest singular value of what factors miss, by power steps."""
    left, right = whole if isinstance(whole, tuple) else (None, whole)

    def times(vector: torch.Tensor) -> torch.Tensor:
        own = _product(right, vector)
        return (own if left is None else _product(left, own)) - scale * (b @ (a @ vector))

    def turned(vector: torch.Tensor) -> torch.Tensor:
        own = vector if left is None else _product(left.t(), vector)
        return _product(right.t(), own) - scale * (a.t() @ (b.t() @ vector))

    vector = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(0)).double()
    length = 0.0
    for _ in range(_STEPS):
        size = float(vector.norm())
        if not size:
            return 0.0
        image = times(vector / size)
        length = float(image.norm())
        vector = turned(image)
    return length


def _product(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (matrix @ vector.to(matrix.dtype)).double()


def _wholes(module: FactorModule, updates: UpdateFile) -> Sequence[torch.Tensor | Pair]:
    if module.products:
        return [concatenated(updates.pairs(module, "cpu"))]
    whole = updates.tensor(module.tensor)
    matrices = list(whole) if module.kind == "experts" else [whole]
    return [matrix.t().contiguous() if module.transposed else matrix for matrix in matrices]


def _split(module: FactorModule, factors: Sequence[torch.Tensor], experts: int) -> list[Pair]:
    """Return the factors of each expert, of other modules the only ones."""
    b, a = factors
    if module.kind != "experts":
        return [(b, a)]
    rank = len(a) // experts
    columns = b.reshape(len(b), rank, experts)
    return [(columns[:, :, i], a[i * rank : (i + 1) * rank]) for i in range(experts)]


def _squares(whole: torch.Tensor | Pair) -> float:
    if isinstance(whole, tuple):
        nothing = whole[0].new_zeros(len(whole[0]), 1), whole[1].new_zeros(1, whole[1].shape[1])
        return squared_error(whole, *nothing, 1.0)
    return float(whole.double().square().sum()) if whole.numel() else 0.0


def _lengths(pairs: Sequence[Pair], scale: float) -> float:
    """Return what rounding errors of the factors' elements can add up to."""
    return scale * sum(
        float((b.double().norm(dim=0) * a.double().norm(dim=1)).sum()) for b, a in pairs
    )


def _share(found: float, told: float, bound: float) -> float:
    return abs(found - told) / bound if bound else float(found != told)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    raw = (x.contiguous().view(torch.uint8) if x.numel() else x for x in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)
