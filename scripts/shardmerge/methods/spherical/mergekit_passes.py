"""mergekit 0.1.5's interpolation on a sphere in passes: the bits of ``mergekit``'s kernels.

What is made of values is rounded to their type, as torch does; numbers are computed by torch
itself, as tensors of the kernels' shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.passes import Elements, ElementValue, Passes, Together, TorchSums
from shardmerge.methods.spherical.mergekit import SLERP_CHUNK, stock_share
from shardmerge.methods.spherical.passes import nuslerp_axis, stock_axis, without_mean

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def slerp(group: Group) -> Passes:
    """Interpolate in float32 from chunked norms and a chunked dot product."""
    pair = [group.base, *group.others]
    t = torch.tensor([[group.parameters["t"]]])
    found = yield TorchSums(lambda x: [x.single(x[i]) for i in pair], "norm", SLERP_CHUNK)
    norms = []
    for parts in found:
        length = torch.linalg.vector_norm(_column(parts), dim=0)
        norms.append(float(torch.where(length > 1e-8, length, 1)))

    def products(x: Elements) -> list[ElementValue]:
        left, right = (x.single(x[i]) / norm for i, norm in zip(pair, norms, strict=True))
        return [left * right]

    (dots,) = yield TorchSums(products, chunk=SLERP_CHUNK)
    cosine = _column(dots).sum(dim=0).clamp(-1, 1)
    parallel = cosine.abs() > 0.9995
    angle = torch.acos(torch.where(parallel, 0, cosine))
    weights = [
        float(torch.where(parallel, share, torch.sin(share * angle) / torch.sin(angle)))
        for share in (1 - t, t)
    ]

    def merged(x: Elements) -> ElementValue:
        left, right = (x.single(x[i]) * w for i, w in zip(pair, weights, strict=True))
        return x.rounded(left + right)

    return merged


def _column(numbers: np.ndarray) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)


def nuslerp(group: Group) -> Passes:
    """Interpolate whole tensors or task vectors, or rows or columns of them, in their dtype."""
    pair, axis = group.others, nuslerp_axis(group)
    weights = [group.per_input["weight"][i] for i in pair]
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    parts = _vectors(pair, group.base)
    norms = _numbers(group, (yield TorchSums(parts, "norm", axis=axis))).clamp(min=1e-7)

    def products(x: Elements) -> list[ElementValue]:
        left, right = (v / x.along(n, axis) for v, n in zip(parts(x), _plain(norms), strict=True))
        return [left * right]

    (dots,) = yield TorchSums(products, axis=axis)
    cosine = _numbers(group, dots).clamp(-1, 1)
    parallel = (1 - cosine.square()) <= 1e-16
    angle = torch.acos(torch.where(parallel, 0, cosine))
    *sines, whole = _plain(torch.sin(torch.stack([(1 - t) * angle, t * angle, angle])))
    straight = _plain(parallel)

    def merged(x: Elements) -> ElementValue:
        left, right = parts(x)
        mixed = left * x.along(sines[0], axis) + right * x.along(sines[1], axis)
        mixed = mixed / x.along(whole, axis)
        if straight.any():
            line = left * (1 - t) + right * t
            mixed = x.where(x.along(straight, axis).ne(0.0), line, mixed)
        return mixed if group.base is None else x[group.base] + mixed

    return merged


def multislerp(group: Group) -> Passes:
    """Interpolate directions by the tangent space at their weighted mean, in their dtype."""
    indices, eps, dtype = group.others, group.parameters["eps"], _DTYPES[group.dtype]
    if len(indices) == 1:
        return lambda x: x[indices[0]]
    vectors = _vectors(indices, group.base)
    weights = torch.tensor([group.per_input["weight"][i] for i in indices], dtype=dtype)
    if group.parameters["normalize_weights"]:
        weights = weights / weights.sum()
    norms = _numbers(group, (yield TorchSums(vectors, "norm")))[:, 0]
    lengths, factors = (norms + eps).tolist(), weights.tolist()

    def units(x: Elements) -> list[ElementValue]:
        return [vector / length for vector, length in zip(vectors(x), lengths, strict=True)]

    def mixed(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
        return _sum(x, [part * factor for part, factor in zip(parts, factors, strict=True)])

    length = _numbers(group, (yield TorchSums(lambda x: [mixed(x, units(x))], "norm")))
    if length < eps:
        return _cancelled(group, lambda x: mixed_two(x, vectors(x), factors))
    size = float(length)
    dots = yield TorchSums(lambda x: [unit * (mixed(x, units(x)) / size) for unit in units(x)])
    dots = dots[:, 0].tolist()

    def tangent(x: Elements) -> tuple[ElementValue, ElementValue]:
        mean = mixed(x, units(x)) / size
        apart = [unit - mean * dot for unit, dot in zip(units(x), dots, strict=True)]
        return mean, mixed(x, apart)

    step = _numbers(group, (yield TorchSums(lambda x: [tangent(x)[1]], "norm"))) + eps
    along, across = float(torch.cos(step)), float(torch.sin(step) / step)
    radius = float((norms * weights).sum())

    def merged(x: Elements) -> ElementValue:
        mean, aside = tangent(x)
        result = (mean * along + aside * across) * radius
        return result if group.base is None else result + x[group.base]

    return merged


def mixed_two(x: Elements, parts: Sequence[ElementValue], factors: Sequence[float]) -> ElementValue:
    """Return the weighted sum of two values."""
    left, right = (part * factor for part, factor in zip(parts, factors, strict=True))
    return left + right


def _cancelled(group: Group, made: Callable[[Elements], ElementValue]) -> Callable:
    """Return the map of directions that cancel out.

    Raises:
        UserError: If they are not two.
    """
    if len(group.others) != 2:
        raise without_mean(group)
    return lambda x: made(x) if group.base is None else made(x) + x[group.base]


def model_stock(group: Group) -> Passes:
    """Interpolate between base and mean by the mean cosine of the task vectors, in their dtype."""
    models, axis = group.others, stock_axis(group)
    parts = _vectors(models, group.base)

    def products(x: Elements) -> list[ElementValue]:
        return [a * b for a, b in itertools.combinations(parts(x), 2)]

    sums = TorchSums(parts, "norm", axis=axis), TorchSums(products, axis=axis)
    norms, dots = (_numbers(group, found) for found in (yield Together(sums)))
    lengths = [a * b for a, b in itertools.combinations(norms, 2)]
    cosines = [
        (dot / length.clamp(min=1e-6)).clamp(-1, 1)
        for dot, length in zip(dots, lengths, strict=True)
    ]
    t = stock_share(cosines, len(models))[:, 0]
    share, rest = _plain(t), _plain(1 - t)

    def merged(x: Elements) -> ElementValue:
        total = x.full(0.0)
        for index in models:
            total = total + x[index]
        mean = total / float(len(models))
        return mean * x.along(share, axis) + x[group.base] * x.along(rest, axis)

    return merged


def _numbers(group: Group, found: np.ndarray) -> torch.Tensor:
    """Return what was found of vectors as torch has it, in the inputs' dtype."""
    return torch.tensor(found, dtype=_DTYPES[group.dtype])


def _plain(numbers: torch.Tensor) -> np.ndarray:
    return numbers.double().numpy()


def _vectors(indices: Sequence[int], base: int | None) -> Callable[[Elements], list[ElementValue]]:
    return lambda x: [x[i] if base is None else x[i] - x[base] for i in indices]


def _sum(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
    """Return a sum in float32 in the order of the parts, from zero, rounded once."""
    total = x.single(x.full(0.0))
    for part in parts:
        total = total + x.single(part)
    return x.rounded(total)
