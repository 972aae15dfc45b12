"""mergekit 0.1.5's interpolation on a sphere, and Model Stock, bit by bit.

As in ``task_vectors.mergekit``, a full reduction's bits depend on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.blocks import spans
from shardmerge.methods.kernels.execute import make_whole
from shardmerge.methods.passes import Elements, ElementValue, Map
from shardmerge.methods.spherical.passes import SLERP_CHUNK, without_mean


def slerp(group: Group) -> torch.Tensor:
    """Interpolate in float32 from chunked norms and a chunked dot product."""
    first = group.tensors[group.base]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    pair = [group.tensors[i].reshape(1, -1) for i in (group.base, *group.others)]
    t = torch.tensor([[group.parameters["t"]]], dtype=wide)
    chunks = list(spans(first.numel(), SLERP_CHUNK))
    if not chunks:
        return first.clone()

    def norm(vector: torch.Tensor) -> torch.Tensor:
        parts = [_row_norm(vector[:, chunk].to(wide)) for chunk in chunks]
        length = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return torch.where(length > 1e-8, length, 1)

    norms = [norm(vector) for vector in pair]
    dots = [
        ((pair[0][:, c].to(wide) / norms[0]) * (pair[1][:, c].to(wide) / norms[1])).sum(1, True)
        for c in chunks
    ]
    cosine = torch.stack(dots).sum(dim=0).clamp(-1, 1)
    parallel = cosine.abs() > 0.9995
    angle = torch.acos(torch.where(parallel, 0, cosine))
    weights = [
        torch.where(parallel, share, torch.sin(share * angle) / torch.sin(angle))
        for share in (1 - t, t)
    ]
    out = torch.empty_like(pair[0])
    for c in chunks:
        out[:, c] = weights[0] * pair[0][:, c].to(wide) + weights[1] * pair[1][:, c].to(wide)
    return out.view(first.shape)


def _row_norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def nuslerp(group: Group) -> torch.Tensor:
    """Interpolate tensors or task vectors, by whole tensors, rows or columns, in their dtype."""
    left, right = (group.tensors[i] for i in group.others)
    weights = [group.per_input["weight"][i] for i in group.others]
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    base = None if group.base is None else group.tensors[group.base]
    if base is not None:
        left, right = left - base, right - base
    by_column = group.parameters["nuslerp_row_wise"] and not group.parameters["nuslerp_flatten"]
    shape = left.shape
    if group.parameters["nuslerp_flatten"]:
        left, right = left.reshape(-1), right.reshape(-1)
    elif by_column:
        left, right = left.transpose(0, -1), right.transpose(0, -1)

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / torch.norm(x, dim=-1, keepdim=True).clamp(min=1e-7)

    cosine = torch.sum(unit(left) * unit(right), dim=-1, keepdim=True).clamp(-1, 1)
    parallel = (1 - cosine.square()) <= 1e-16
    angle = torch.acos(torch.where(parallel, 0, cosine))
    arc = torch.sin((1 - t) * angle) * left + torch.sin(t * angle) * right
    mixed = torch.where(parallel, (1 - t) * left + t * right, arc / torch.sin(angle))
    mixed = (mixed.transpose(0, -1) if by_column else mixed).reshape(shape)
    return mixed if base is None else base + mixed


def multislerp(group: Group) -> torch.Tensor:
    """Interpolate directions by the tangent space at their weighted mean, in their dtype."""
    indices, eps = group.others, group.parameters["eps"]
    if len(indices) == 1:
        return group.tensors[indices[0]].clone()
    base = None if group.base is None else group.tensors[group.base]
    stack = torch.stack([group.tensors[i] for i in indices])
    if base is not None:
        stack -= base
    vectors = stack.view(len(stack), -1)
    weights = vectors.new_tensor([group.per_input["weight"][i] for i in indices])
    if group.parameters["normalize_weights"]:
        weights = weights / weights.sum()
    norms = torch.norm(vectors, dim=-1, keepdim=True)
    units = vectors / (norms + eps)
    mean = (units * weights[:, None]).sum(0)
    length = torch.norm(mean)
    if length < eps:
        if len(stack) != 2:
            raise without_mean(group)
        mixed = (stack[0] * weights[0] + stack[1] * weights[1]).view(stack.shape[1:])
        return mixed if base is None else mixed + base
    mean = mean / length
    tangents = units - (units * mean).sum(-1, keepdim=True) * mean
    tangent = (tangents * weights[:, None]).sum(0)
    step = torch.norm(tangent) + eps
    mixed = mean * torch.cos(step) + tangent * (torch.sin(step) / step)
    mixed = (mixed * (norms.squeeze(-1) * weights).sum()).view(stack.shape[1:])
    return mixed if base is None else mixed + base


def karcher(group: Group) -> torch.Tensor:
    """Iterate to the mean of the directions, which are kept in the inputs' dtype."""
    tensors, tolerance = group.tensors, group.parameters["tol"]
    if len(tensors) == 1:
        return tensors[0].clone()
    make = group.make_whole or make_whole
    # what torch adds up is float32, in which the numbers of 16 bits are held that are added up
    wide = torch.empty_like(tensors[0], dtype=torch.promote_types(tensors[0].dtype, torch.float32))

    def length(function: Map, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """Make elements; return the norm of all."""
        make(function, given, wide)
        return torch.linalg.vector_norm(wide)

    share = 1.0 / len(tensors)
    norms = [length(_same, [tensor]) for tensor in tensors]
    valid = [i for i, norm in enumerate(norms) if norm.item() > tolerance]
    if not valid:
        return sum(tensor * 0 for tensor in tensors)
    units = [torch.empty_like(tensors[i]) for i in valid]
    for unit, i in zip(units, valid, strict=True):
        make(_divided(norms[i]), [tensors[i]], unit)
    weight = share / sum([share] * len(valid))
    mean = torch.empty_like(units[0])
    each = range(len(units))
    norm = length(lambda x: _total(x, [x[i] * weight for i in each]), units)
    if norm.item() < tolerance:
        mean.copy_(units[0])
    else:
        make(_divided(norm), [wide], mean)
    for _ in range(group.parameters["max_iter"]):
        step = length(_tangent(mean, units, weight, tolerance), [mean, *units])
        if step.item() < tolerance:
            break
        norm = length(_moved(step, mean.dtype), [mean, wide])
        make(_divided(norm) if norm.item() > tolerance else _same, [wide], mean)
    return torch.mul(sum(share * norm for norm in norms), mean, out=mean if mean.dim() else None)


def _tangent(
    mean: torch.Tensor, units: Sequence[torch.Tensor], weight: float, tolerance: float
) -> Map:
    """Return what makes the mean of the directions from one to others: of it and of these."""
    parts = []
    for number, unit in enumerate(units, 1):
        cosine = torch.clamp(torch.dot(mean.flatten(), unit.flatten()), -1.0, 1.0)
        angle = torch.arccos(cosine)
        if not angle.item() < tolerance:
            parts.append((number, cosine.item(), (weight * (angle / torch.sin(angle))).item()))

    def tangent(x: Elements) -> ElementValue:
        return _total(x, [(x[i] - x[0] * cosine) * scale for i, cosine, scale in parts])

    return tangent


def _moved(step: torch.Tensor, dtype: torch.dtype) -> Map:
    """Return what moves a mean along a tangent, which may be wider than its type."""
    length = step.item()
    # torch rounds a number that stands before a tensor to its type, but not one behind it
    cosine, sine = (one.to(dtype).item() for one in (torch.cos(step), torch.sin(step)))
    return lambda x: x[0] * cosine + x.quotient(x.rounded(x[1]), length) * sine


def _divided(norm: torch.Tensor) -> Map:
    length = norm.item()
    return lambda x: x.quotient(x[0], length)


def _same(x: Elements) -> ElementValue:
    return x[0]


def _total(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
    total = x.full(0.0)
    for part in parts:
        total = total + part
    return total


def model_stock(group: Group) -> torch.Tensor:
    """Interpolate between base and mean by the mean cosine of the task vectors, in their dtype."""
    base, models = group.tensors[group.base], [group.tensors[i] for i in group.others]
    shape = base.shape
    if not group.parameters["filter_wise"]:
        base, models = base.reshape(-1), [model.reshape(-1) for model in models]
    elif base.dim() == 1:
        base, models = base.unsqueeze(0), [model.unsqueeze(0) for model in models]
    cosines = []
    for a, b in itertools.combinations([model - base for model in models], 2):
        lengths = torch.norm(a, dim=-1) * torch.norm(b, dim=-1)
        cosines.append(((a * b).sum(dim=-1) / lengths.clamp(min=1e-6)).clamp(-1, 1))
    t = _stock_share(cosines, len(models))
    return (t * (sum(models) / len(models)) + (1 - t) * base).reshape(shape)


def _stock_share(cosines: Sequence[torch.Tensor], models: int) -> torch.Tensor:
    """Return Model Stock's share of the mean.

    Args:
        cosines: Of the task vectors of each two models, or of each row of them.
        models: How many there are.

    Returns:
        The share, with a dimension of 1 behind those of the cosines.
    """
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    divisor = 1 + (models - 1) * cosine
    singular = divisor.abs() < 1e-6
    t = (models * cosine) / torch.where(singular, torch.ones_like(divisor), divisor)
    return torch.where(singular, torch.zeros_like(t), t)
