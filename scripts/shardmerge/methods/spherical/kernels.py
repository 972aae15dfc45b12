"""The float32 kernels that interpolate on a sphere, and Model Stock: combinations of the inputs.

Each finds its coefficients from the inputs' dot products (a Gram matrix in float64, one pass over
the tensors) and then combines the inputs themselves in a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from shardmerge.base.errors import UserError
from shardmerge.methods.contract import BLOCK, Group
from shardmerge.methods.kernels.blocks import Coefficient, Tiles, combine, gram, spans, totals
from shardmerge.methods.kernels.functions import acos, at_number, cos, sin

_SMALLEST_NORM = 1e-8
#: Cosine from which slerp interpolates linearly.
_PARALLEL = 0.9995
_NUSLERP_SMALLEST_NORM = 1e-7
_NUSLERP_PARALLEL = 1e-16
_STOCK_SMALLEST = 1e-6


def slerp(group: Group) -> torch.Tensor:
    """Interpolate from the base to the other model along the arc between their directions."""
    pair = [_rows(group.tensors[i], "all") for i in (group.base, *group.others)]
    if not pair[0].numel():
        return group.tensors[0].clone()
    dots = _gram(pair)[:, :, 0].tolist()
    norms = [_norm(dots[i][i]) for i in range(2)]
    cosine = dots[0][1] / math.prod(n if n > _SMALLEST_NORM else 1.0 for n in norms)
    cosine = min(1.0, max(-1.0, cosine))
    t = group.parameters["t"]
    weights = [1 - t, t]
    if abs(cosine) <= _PARALLEL:
        angle = at_number(acos, cosine)
        weights = [at_number(sin, w * angle) / at_number(sin, angle) for w in weights]
    return _combined(pair, weights, group)


def nuslerp(group: Group) -> torch.Tensor:
    """Interpolate between two models, or between their task vectors, by whole tensors or rows."""
    left, right = group.others
    weights = group.per_input["weight"]
    total = weights[left] + weights[right]
    t = 0.5 if abs(total) < 1e-6 else weights[right] / total
    axis = "first" if group.parameters["nuslerp_row_wise"] else "last"
    axis = "all" if group.parameters["nuslerp_flatten"] else axis
    pair = [_rows(group.tensors[i], axis) for i in (left, right)]
    if not pair[0].numel():
        return group.tensors[left].clone()
    origin = None if group.base is None else _rows(group.tensors[group.base], axis)

    def arcs(dots: torch.Tensor) -> list[Coefficient]:
        norms = [dots[i, i].sqrt().clamp_(min=_NUSLERP_SMALLEST_NORM) for i in range(2)]
        cosine = (dots[0, 1] / norms[0] / norms[1]).clamp_(-1, 1)
        parallel = 1 - cosine.square() <= _NUSLERP_PARALLEL
        angle = acos(torch.where(parallel, 0, cosine))
        *parts, whole = sin(torch.stack([(1 - t) * angle, t * angle, angle]))
        return [
            torch.where(parallel, w, part / whole)
            for w, part in zip((1 - t, t), parts, strict=True)
        ]

    return _combined_rows(pair, arcs, group, axis, origin)


def multislerp(group: Group) -> torch.Tensor:
    """Interpolate between many directions; see the method's formula."""
    indices, eps = group.others, group.parameters["eps"]
    if len(indices) == 1 or not group.tensors[0].numel():
        return group.tensors[indices[0]].clone()
    weights = [group.per_input["weight"][i] for i in indices]
    if group.parameters["normalize_weights"]:
        weights = [w / sum(weights) for w in weights]
    vectors = [_rows(group.tensors[i], "all") for i in indices]
    origin = None if group.base is None else _rows(group.tensors[group.base], "all")
    dots = _gram(vectors, origin)
    norms = [_norm(float(dots[i, i, 0])) for i in range(len(indices))]
    units = [w / (n + eps) for w, n in zip(weights, norms, strict=True)]

    # Not from the dot products: that would lose what is left where the directions cancel.
    def mean(span: slice) -> Iterator[torch.Tensor]:
        whole = slice(None)
        result = torch.zeros_like(vectors[0][:, span], dtype=torch.float64)
        for unit, tile in zip(units, _differences(vectors, origin)(whole, span), strict=True):
            result += tile.double() * unit
        yield result.square_()

    length = _norm(totals(mean, vectors[0].numel())[0])
    if length < eps:
        if len(indices) == 2:
            return _combined(vectors, weights, group, origin)
        if any(norms):
            raise UserError(
                "the weighted directions of the models cancel out, so they have no mean",
                group.name or None,
                "Give the models other weights, or merge this tensor with another method.",
            )
        length = 1.0
    radius = sum(w * n for w, n in zip(weights, norms, strict=True)) * at_number(cos, eps)
    return _combined(vectors, [u / length * radius for u in units], group, origin)


def karcher(group: Group) -> torch.Tensor:
    """Find the Riemannian centre of mass of the directions by fixed-point iteration."""
    tolerance = group.parameters["tol"]
    vectors = [_rows(tensor, "all") for tensor in group.tensors]
    if len(vectors) == 1 or not vectors[0].numel():
        return group.tensors[0].clone()
    dots = _gram(vectors)[:, :, 0]
    norms = [_norm(value) for value in dots.diagonal().tolist()]
    valid = [i for i, norm in enumerate(norms) if norm > tolerance]
    if not valid:
        return torch.zeros_like(group.tensors[0])
    lengths = torch.tensor([norms[i] for i in valid], dtype=torch.float64)
    cosines = (dots[valid][:, valid] / lengths / lengths[:, None]).tolist()
    mean = _karcher_mean(cosines, group.parameters["max_iter"], tolerance)
    radius = sum(norms) / len(norms)
    return _combined(
        [vectors[i] for i in valid],
        [radius * c / norms[i] for c, i in zip(mean, valid, strict=True)],
        group,
    )


def _karcher_mean(cosines: list[list[float]], steps: int, tolerance: float) -> list[float]:
    """Return the coefficients of the unit vectors in their mean on the sphere.

    Args:
        cosines: Dot products of the unit vectors.
        steps: Most iterations.
        tolerance: Angles below it count as 0.
    """
    count = len(cosines)

    def dot(a: list[float], b: list[float]) -> float:
        return math.fsum(a[i] * b[j] * cosines[i][j] for i in range(count) for j in range(count))

    mean = [1 / count] * count
    length = _norm(dot(mean, mean))
    mean = [1.0] + [0.0] * (count - 1) if length < tolerance else [c / length for c in mean]
    for _ in range(steps):
        tangent = [0.0] * count
        inner = [math.fsum(c * row[j] for j, c in enumerate(mean)) for row in cosines]
        inner = [min(1.0, max(-1.0, cosine)) for cosine in inner]
        angles = acos(torch.tensor(inner, dtype=torch.float64))
        sines = sin(angles).tolist()
        for i, (cosine, angle) in enumerate(zip(inner, angles.tolist(), strict=True)):
            # To where the mean is, or to its antipode, no one direction leads.
            if min(angle, math.pi - angle) < tolerance:
                continue
            scale = angle / sines[i] / count
            tangent = [g - scale * cosine * c for g, c in zip(tangent, mean, strict=True)]
            tangent[i] += scale
        step = _norm(dot(tangent, tangent))
        if step < tolerance:
            break
        along, across = at_number(cos, step), at_number(sin, step)
        mean = [along * c + across * g / step for c, g in zip(mean, tangent, strict=True)]
        length = _norm(dot(mean, mean))
        if length > tolerance:
            mean = [c / length for c in mean]
    return mean


def model_stock(group: Group) -> torch.Tensor:
    """Go from the base towards the models' mean as far as their mutual angles say."""
    axis = "last" if group.parameters["filter_wise"] else "all"
    base = _rows(group.tensors[group.base], axis)
    models = [_rows(group.tensors[i], axis) for i in group.others]
    if not base.numel():
        return group.tensors[group.base].clone()
    count = len(models)

    def shares(dots: torch.Tensor) -> list[Coefficient]:
        norms = [dots[i, i].sqrt() for i in range(count)]
        cosines = [
            (dots[i, j] / (norms[i] * norms[j]).clamp_(min=_STOCK_SMALLEST)).clamp_(-1, 1)
            for i in range(count)
            for j in range(i + 1, count)
        ]
        cosine = sum(cosines) / len(cosines)
        divisor = 1 + (count - 1) * cosine
        singular = divisor.abs() < _STOCK_SMALLEST
        t = torch.where(singular, 0, count * cosine / torch.where(singular, 1, divisor))
        return [t / count] * count

    return _combined_rows(models, shares, group, axis, base)


def _norm(square: float) -> float:
    return math.sqrt(max(square, 0.0))


def _rows(tensor: torch.Tensor, axis: str) -> torch.Tensor:
    """Return a tensor as a matrix of the vectors along an axis (``all``, ``first``, ``last``)."""
    if axis == "all" or tensor.dim() < 2:
        return tensor.reshape(1, -1)
    if axis == "first":
        return tensor.reshape(tensor.shape[0], -1).t()
    return tensor.reshape(-1, tensor.shape[-1])


def _differences(matrices: list[torch.Tensor], origin: torch.Tensor | None) -> Tiles:
    def function(row: slice, column: slice) -> list[torch.Tensor]:
        parts = [matrix[row, column] for matrix in matrices]
        return parts if origin is None else [part - origin[row, column] for part in parts]

    return function


def _gram(matrices: list[torch.Tensor], origin: torch.Tensor | None = None) -> torch.Tensor:
    return gram(_differences(matrices, origin), *matrices[0].shape)


def _combined(
    matrices: list[torch.Tensor],
    coefficients: list[Coefficient],
    group: Group,
    origin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the linear combination of matrices of one row."""
    result = torch.empty_like(group.tensors[0], memory_format=torch.contiguous_format)
    combine(matrices, coefficients, _rows(result, "all"), origin)
    return result


def _combined_rows(
    matrices: list[torch.Tensor],
    coefficients: Callable[[torch.Tensor], list[Coefficient]],
    group: Group,
    axis: str,
    origin: torch.Tensor | None,
) -> torch.Tensor:
    """Return the combination whose coefficients depend on each row's dot products."""
    result = torch.empty_like(group.tensors[0], memory_format=torch.contiguous_format)
    out = _rows(result, axis)
    rows = max(1, BLOCK // max(out.shape[1], len(matrices) ** 2))
    for row in spans(out.shape[0], rows):
        parts = [matrix[row] for matrix in matrices]
        start = None if origin is None else origin[row]
        combine(parts, coefficients(_gram(parts, start)), out[row], start)
    return result
