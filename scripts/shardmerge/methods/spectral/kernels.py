"""TSV-Merge, Iso-C, Iso-CTS and Subspace Boosting: float64 inside, rounded once at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.spectral.decompose import Factors, orthonormal, singular_vectors

#: Of the bounds that are added up here.
_SPARE = 4.0
#: A merged task matrix, and a bound on its distance (Frobenius norm) from another library's.
Bounded = tuple[torch.Tensor, float]
#: Merges task matrices, float64 [rows, columns] each and finite; (group, matrices, error of each).
MatrixMethod = Callable[[Group, Sequence[torch.Tensor], float], Bounded]


def merged(group: Group, method: MatrixMethod, error: float = 0.0, *, mean: bool = True) -> Bounded:
    """Return the base plus what a method makes of the task vectors.

    Args:
        group: With ``weight``, ``decompose`` and ``lambda``.
        method: For matrices; a tensor of three dimensions is a stack of them.
        error: Bound on the distance (Frobenius norm) of each input from the one that is meant.
        mean: Whether anything else gets the mean of the task vectors, not their sum.

    Returns:
        The tensor, and a bound on an element's distance from another library's before rounding.
    """
    base = group.tensors[group.base]
    out, bound = torch.empty(base.shape, dtype=base.dtype, device=base.device), 0.0
    error *= 2 * max((abs(group.per_input["weight"][i]) for i in group.others), default=0.0)
    factor = group.parameters["lambda"]
    for place in _matrices(base.shape):
        matrices = [_delta(group, i, place) for i in group.others]
        if _can_be_decomposed(group, matrices):
            made, apart = method(group, matrices, error)
            bound = max(bound, apart)
        else:
            made = _sum(matrices, base[place]) / (max(len(matrices), 1) if mean else 1)
            bound = max(bound, len(matrices) * error)
        out[place] = made.mul_(factor).add_(base[place].double()).to(out)
    return out, abs(factor) * bound


def tsv_m(group: Group, matrices: Sequence[torch.Tensor], error: float) -> Bounded:
    """Keep the first singular vectors of each matrix, make them orthonormal, add all up."""
    keep = min(matrices[0].shape) // len(matrices)
    if not keep:
        return _sum(matrices, matrices[0]) / len(matrices), error
    parts = [singular_vectors(matrix, error, keep) for matrix in matrices]
    values = torch.cat([part.values for part in parts])
    left, right, turn = _orthonormal_both(parts)
    noise = max(part.noise for part in parts) * math.sqrt(len(values))
    largest = float(values.max()) if len(values) else 0.0
    return (left * values) @ right.t(), _SPARE * (largest * turn + noise)


def iso_c(group: Group, matrices: Sequence[torch.Tensor], error: float) -> Bounded:
    """Replace the singular values of the sum by their mean."""
    total = _sum(matrices, matrices[0])
    found = singular_vectors(total, len(matrices) * error)
    mean = float(found.values.sum()) / min(total.shape)
    return (found.left * mean) @ found.right.t(), _SPARE * (mean * found.turn + found.noise)


def iso_cts(group: Group, matrices: Sequence[torch.Tensor], error: float) -> Bounded:
    """Join the first singular vectors of the sum with those of what it lacks of each matrix."""
    count = min(matrices[0].shape)
    wanted = count - int(group.parameters["common"] * count)
    # equally many of each matrix, and all vectors that there are together
    own = min(round(wanted / len(matrices)), count // len(matrices))
    keep = count - own * len(matrices)
    common = singular_vectors(_sum(matrices, matrices[0]), len(matrices) * error, keep)
    parts = [common]
    for matrix in matrices:
        norm = float(matrix.norm())
        rest = matrix - common.left @ (common.left.t() @ matrix)
        apart = error + 2 * norm * common.turn
        parts.append(singular_vectors(rest, apart, own, norm))
    values = torch.cat([part.values for part in parts])
    left, right, turn = _orthonormal_both(parts)
    mean = float(values.mean()) if len(values) else 0.0
    noise = max(part.noise for part in parts) * math.sqrt(len(values))
    return (left * mean) @ right.t(), _SPARE * (mean * turn + noise)


def subspace_boosting(group: Group, matrices: Sequence[torch.Tensor], error: float) -> Bounded:
    """Raise the singular values of the sum that are small."""
    found = singular_vectors(_sum(matrices, matrices[0]), len(matrices) * error)
    if not len(found.values):
        return _sum(matrices, matrices[0]), found.noise
    shares = found.values.cumsum(0) / found.values.sum()
    place = int((shares < group.parameters["beta"]).sum())
    place = min(place, len(found.values) - 1)
    least = float(found.values[place])
    bound = _SPARE * (found.noise + least * found.turn)
    doubt = len(shares) * found.noise / float(found.values.sum())
    if group.parameters["beta"] and (shares - group.parameters["beta"]).abs().min() <= doubt:
        bound = math.inf  # another library may have the next singular value
    return (found.left * found.values.clamp(min=least)) @ found.right.t(), bound


def _orthonormal_both(parts: Sequence[Factors]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the nearest orthonormal matrices of all left and all right vectors, with a bound."""
    turn = math.hypot(*(part.turn for part in parts))
    left, above = orthonormal(torch.cat([part.left for part in parts], dim=1), turn)
    right, below = orthonormal(torch.cat([part.right for part in parts], dim=1), turn)
    return left, right, 2 * turn + above + below


def _can_be_decomposed(group: Group, matrices: Sequence[torch.Tensor]) -> bool:
    if not matrices or not group.parameters["decompose"]:
        return False
    first = matrices[0]
    if first.dim() != 2 or not first.numel():
        return False
    return all(bool(matrix.isfinite().all()) for matrix in matrices)


def _matrices(shape: Sequence[int]) -> Iterator[tuple[int, ...] | EllipsisType]:
    """Yield the places of a tensor's matrices; of all of it, if it is no stack of them."""
    if len(shape) == 3:
        yield from ((index,) for index in range(shape[0]))
    else:
        yield ...


def _delta(group: Group, index: int, place: tuple[int, ...] | EllipsisType) -> torch.Tensor:
    """Return an input's weighted task vector, in float64."""
    model, base = group.tensors[index][place], group.tensors[group.base][place]
    delta = model.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    return delta.sub_(base).mul_(group.per_input["weight"][index])


def _sum(matrices: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return the sum in the order of the models, in float64."""
    total = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
    for matrix in matrices:
        total += matrix
    return total
