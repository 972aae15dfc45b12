"""mergekit 0.1.5's interpolation on a sphere in passes: the bits of ``mergekit``'s kernels.

What is made of values is rounded to their type, as torch does. Numbers of whole tensors are too
(``typed``). Those of ``slerp``, which are float32 of any input, are computed by torch itself, as
tensors of the kernel's shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.typed import TypedNumbers, mean_of_each, numbers_of, where
from shardmerge.methods.passes import Elements, ElementValue, Passes, Together, TorchSums
from shardmerge.methods.spherical.passes import (
    SLERP_CHUNK,
    nuslerp_axis,
    stock_axis,
    without_mean,
)

if TYPE_CHECKING:
    import torch


def slerp(group: Group) -> Passes:
    """Interpolate in float32 from chunked norms and a chunked dot product."""
    import torch

    pair = [group.base, *group.others]
    t = torch.tensor([[group.parameters["t"]]])
    found = yield TorchSums(lambda x: [x.single(x[i]) for i in pair], "norm", SLERP_CHUNK)
    norms = []
    for parts in found:
        length = torch.linalg.vector_norm(_column(parts), dim=0)
        norms.append(float(torch.where(length > 1e-8, length, 1)))

    def products(x: Elements) -> list[ElementValue]:
        left, right = (
            x.quotient(x.single(x[i]), norm) for i, norm in zip(pair, norms, strict=True)
        )
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
    import torch

    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)


def nuslerp(group: Group) -> Passes:
    """Interpolate whole tensors or task vectors, or rows or columns of them, in their dtype."""
    pair, axis = group.others, nuslerp_axis(group)
    weights = [group.per_input["weight"][i] for i in pair]
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    parts = _vectors(pair, group.base)
    norms = numbers_of((yield TorchSums(parts, "norm", axis=axis)), group.dtype).clamp(1e-7, np.inf)

    def products(x: Elements) -> list[ElementValue]:
        left, right = (v / x.along(n.array, axis) for v, n in zip(parts(x), norms, strict=True))
        return [left * right]

    (dots,) = yield TorchSums(products, axis=axis)
    cosine = numbers_of(dots, group.dtype).clamp(-1, 1)
    parallel = cosine * cosine * -1 + 1 <= 1e-16
    angle = where(parallel, 0.0, cosine).acos()
    *sines, whole = ((angle * share).sin().array for share in (1 - t, t, 1.0))
    straight = parallel.array.astype(np.float32)

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
    indices, eps, dtype = group.others, group.parameters["eps"], group.dtype
    if len(indices) == 1:
        return lambda x: x[indices[0]]
    vectors = _vectors(indices, group.base)
    weights = numbers_of([group.per_input["weight"][i] for i in indices], dtype)
    if group.parameters["normalize_weights"]:
        weights = weights / weights.sum()
    norms = numbers_of((yield TorchSums(vectors, "norm"))[:, 0], dtype)
    lengths, factors = (norms + eps).array.tolist(), weights.array.tolist()

    def units(x: Elements) -> list[ElementValue]:
        return [
            x.quotient(vector, length) for vector, length in zip(vectors(x), lengths, strict=True)
        ]

    def mixed(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
        return _sum(x, [part * factor for part, factor in zip(parts, factors, strict=True)])

    length = numbers_of((yield TorchSums(lambda x: [mixed(x, units(x))], "norm"))[0], dtype)
    if (length < eps).array:
        return _cancelled(group, lambda x: mixed_two(x, vectors(x), factors))
    (size,) = length.array.tolist()

    def centre(x: Elements) -> ElementValue:
        return x.quotient(mixed(x, units(x)), size)

    dots = yield TorchSums(lambda x: [unit * centre(x) for unit in units(x)])
    dots = dots[:, 0].tolist()

    def tangent(x: Elements) -> tuple[ElementValue, ElementValue]:
        mean = centre(x)
        apart = [unit - mean * dot for unit, dot in zip(units(x), dots, strict=True)]
        return mean, mixed(x, apart)

    step = numbers_of((yield TorchSums(lambda x: [tangent(x)[1]], "norm"))[0], dtype) + eps
    (along,), (across,) = (one.array.tolist() for one in (step.cos(), step.sin() / step))
    radius = float((norms * weights).sum().array)

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
    norms, dots = (numbers_of(found, group.dtype) for found in (yield Together(sums)))
    lengths = [a * b for a, b in itertools.combinations(norms, 2)]
    cosines = [
        (dot / length.clamp(1e-6, np.inf)).clamp(-1, 1)
        for dot, length in zip(dots, lengths, strict=True)
    ]
    t = _stock_share(cosines, len(models))
    share, rest = t.array, (t * -1 + 1).array

    def merged(x: Elements) -> ElementValue:
        total = x.full(0.0)
        for index in models:
            total = total + x[index]
        mean = x.quotient(total, len(models))
        return mean * x.along(share, axis) + x[group.base] * x.along(rest, axis)

    return merged


def _stock_share(cosines: Sequence[TypedNumbers], models: int) -> TypedNumbers:
    """Return Model Stock's share of the mean, as ``mergekit.model_stock`` does, by vectors.

    Args:
        cosines: Of the task vectors of each two models.
        models: How many there are.
    """
    cosine = mean_of_each(cosines)
    divisor = cosine * (models - 1) + 1
    singular = divisor.abs() < 1e-6
    return where(singular, 0.0, cosine * models / where(singular, 1.0, divisor))


def _vectors(indices: Sequence[int], base: int | None) -> Callable[[Elements], list[ElementValue]]:
    return lambda x: [x[i] if base is None else x[i] - x[base] for i in indices]


def _sum(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
    """Return a sum in float32 in the order of the parts, from zero, rounded once."""
    total = x.single(x.full(0.0))
    for part in parts:
        total = total + x.single(part)
    return x.rounded(total)
