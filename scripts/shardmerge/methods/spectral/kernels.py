"""TSV-Merge, Iso-C, Iso-CTS and Subspace Boosting: float64 inside, rounded once at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType

import numpy as np
import torch

from shardmerge.methods.contract import Group, Recorded
from shardmerge.methods.spectral.decompose import Factors, orthonormal, singular_vectors
from shardmerge.methods.spectral.notes import Notes, Recorder

#: Of the bounds that are added up here.
_SPARE = 4.0
#: A merged task matrix, and a bound on its distance (Frobenius norm) from another library's.
Bounded = tuple[torch.Tensor, float]
#: Merges task matrices, float64 [rows, columns] each and finite: (group, matrices, error of each,
#: notes of what it finds).
MatrixMethod = Callable[[Group, Sequence[torch.Tensor], float, Notes | None], Bounded]


def probed(
    group: Group, method: MatrixMethod, places: np.ndarray, *, mean: bool = True
) -> tuple[torch.Tensor, Recorded]:
    """Return what a method makes of a tensor, and what is recorded.

    Args:
        group, method, mean: As of ``merged``.
        places: Indices of the sampled elements, ascending.
    """
    code = "F64" if group.tensors[group.base].dtype == torch.float64 else "F32"
    recorder = Recorder(places, code)
    made, _ = merged(group, method, mean=mean, recorder=recorder)
    return made, recorder.result()


def merged(
    group: Group,
    method: MatrixMethod,
    error: float = 0.0,
    *,
    mean: bool = True,
    recorder: Recorder | None = None,
) -> Bounded:
    """Return the base plus what a method makes of the task vectors.

    Args:
        group: With ``weight``, ``decompose`` and ``lambda``.
        method: For matrices; a tensor of three dimensions is a stack of them.
        error: Bound on the distance (Frobenius norm) of each input from the one that is meant.
        mean: Whether anything else gets the mean of the task vectors, not their sum.
        recorder: Takes what is recorded.

    Returns:
        The tensor, and a bound on an element's distance from another library's before rounding.
    """
    base = group.tensors[group.base]
    out, bound = torch.empty(base.shape, dtype=base.dtype, device=base.device), 0.0
    error *= 2 * max((abs(group.per_input["weight"][i]) for i in group.others), default=0.0)
    factor = group.parameters["lambda"]
    for number, place in enumerate(_matrices(base.shape)):
        matrices = [_delta(group, i, place) for i in group.others]
        notes = None
        if _can_be_decomposed(group, matrices):
            if recorder:
                notes = Notes(group.name, number, matrices[0].shape, base.device)
            made, apart = method(group, matrices, error, notes)
            bound = max(bound, apart)
        else:
            made = _sum(matrices, base[place]) / (max(len(matrices), 1) if mean else 1)
            bound = max(bound, len(matrices) * error)
        if recorder:
            recorder.add(made, number * made.numel(), notes)
        out[place] = made.mul_(factor).add_(base[place].double()).to(out)
    return out, abs(factor) * bound


def tsv_m(
    group: Group, matrices: Sequence[torch.Tensor], error: float, notes: Notes | None = None
) -> Bounded:
    """Keep the first singular vectors of each matrix, make them orthonormal, add all up."""
    keep = min(matrices[0].shape) // len(matrices)
    if not keep:
        return _sum(matrices, matrices[0]) / len(matrices), error
    parts = [singular_vectors(matrix, error, keep, notes=notes) for matrix in matrices]
    values = torch.cat([part.values for part in parts])
    left, right, turn = _orthonormal_both(parts, notes)
    noise = max(part.noise for part in parts) * math.sqrt(len(values))
    largest = float(values.max()) if len(values) else 0.0
    return (left * values) @ right.t(), _SPARE * (largest * turn + noise)


def iso_c(
    group: Group, matrices: Sequence[torch.Tensor], error: float, notes: Notes | None = None
) -> Bounded:
    """Replace the singular values of the sum by their mean."""
    total = _sum(matrices, matrices[0])
    found = singular_vectors(total, len(matrices) * error, notes=notes)
    mean = float(found.values.sum()) / min(total.shape)
    return (found.left * mean) @ found.right.t(), _SPARE * (mean * found.turn + found.noise)


def iso_cts(
    group: Group, matrices: Sequence[torch.Tensor], error: float, notes: Notes | None = None
) -> Bounded:
    """Join the first singular vectors of the sum with those of what it lacks of each matrix."""
    count = min(matrices[0].shape)
    wanted = count - int(group.parameters["common"] * count)
    # equally many of each matrix, and all vectors that there are together
    own = min(round(wanted / len(matrices)), count // len(matrices))
    keep = count - own * len(matrices)
    total = _sum(matrices, matrices[0])
    common = singular_vectors(total, len(matrices) * error, keep, notes=notes)
    if notes:
        notes.projected(common.left @ (common.left.t() @ notes.left))
    parts = [common]
    for matrix in matrices:
        norm = float(matrix.norm())
        rest = matrix - common.left @ (common.left.t() @ matrix)
        apart = error + 2 * norm * common.turn
        parts.append(singular_vectors(rest, apart, own, norm, notes))
    values = torch.cat([part.values for part in parts])
    left, right, turn = _orthonormal_both(parts, notes)
    mean = float(values.mean()) if len(values) else 0.0
    noise = max(part.noise for part in parts) * math.sqrt(len(values))
    return (left * mean) @ right.t(), _SPARE * (mean * turn + noise)


def subspace_boosting(
    group: Group, matrices: Sequence[torch.Tensor], error: float, notes: Notes | None = None
) -> Bounded:
    """Raise the singular values of the sum that are small."""
    found = singular_vectors(_sum(matrices, matrices[0]), len(matrices) * error, notes=notes)
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


def _orthonormal_both(
    parts: Sequence[Factors], notes: Notes | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the nearest orthonormal matrices of all left and all right vectors, with a bound."""
    turn = math.hypot(*(part.turn for part in parts))
    left, above = orthonormal(torch.cat([part.left for part in parts], dim=1), turn, notes)
    columns = torch.cat([part.right for part in parts], dim=1)
    right, below = orthonormal(columns, turn, notes, "right")
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
