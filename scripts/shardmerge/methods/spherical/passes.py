"""The methods that interpolate on a sphere, and Model Stock: combinations of the inputs.

Each finds its coefficients from the inputs' dot products, and then combines the inputs themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from shardmerge.base.errors import UserError
from shardmerge.base.numerics import sum_in_order
from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.circular import acos, at_number, cos, cos_and_sin, sin
from shardmerge.methods.kernels.roots import root
from shardmerge.methods.passes import Axis, Elements, ElementValue, Map, Passes, Sums

#: Elements whose norms and dot products mergekit's slerp adds up at a time.
SLERP_CHUNK = 1 << 20
_SMALLEST_NORM = 1e-8
#: Cosine from which slerp interpolates linearly.
_PARALLEL = 0.9995
_NUSLERP_SMALLEST_NORM = 1e-7
_NUSLERP_PARALLEL = 1e-16
_STOCK_SMALLEST = 1e-6


def slerp(group: Group) -> Passes:
    """Interpolate from the base to the other model along the arc between their directions."""
    pair = [group.base, *group.others]
    dots = _matrix((yield _dots(pair)))[:, :, 0].tolist()
    norms = [root(dots[i][i]) for i in range(2)]
    cosine = dots[0][1] / math.prod(n if n > _SMALLEST_NORM else 1.0 for n in norms)
    cosine = min(1.0, max(-1.0, cosine))
    t = group.parameters["t"]
    weights = [1 - t, t]
    if abs(cosine) <= _PARALLEL:
        angle = at_number(acos, cosine)
        weights = [at_number(sin, w * angle) / at_number(sin, angle) for w in weights]
    return _combination(pair, weights)


def nuslerp(group: Group) -> Passes:
    """Interpolate between two models, or between their task vectors, by whole tensors or rows."""
    left, right = pair = group.others
    weights = group.per_input["weight"]
    total = weights[left] + weights[right]
    t = 0.5 if abs(total) < 1e-6 else weights[right] / total
    axis = nuslerp_axis(group)
    dots = _matrix((yield _dots(pair, group.base, axis)))
    norms = [np.maximum(root(dots[i, i]), _NUSLERP_SMALLEST_NORM) for i in range(2)]
    cosine = np.clip(dots[0, 1] / norms[0] / norms[1], -1, 1)
    parallel = 1 - np.square(cosine) <= _NUSLERP_PARALLEL
    angle = acos(np.where(parallel, 0, cosine))
    *parts, whole = sin(np.stack([(1 - t) * angle, t * angle, angle]))
    shares = [
        np.where(parallel, w, part / whole) for w, part in zip((1 - t, t), parts, strict=True)
    ]
    return _combination(pair, shares, group.base, axis)


def nuslerp_axis(group: Group) -> Axis:
    """Return the vectors between which NuSLERP interpolates."""
    if group.parameters["nuslerp_flatten"]:
        return "all"
    return "first" if group.parameters["nuslerp_row_wise"] else "last"


def multislerp(group: Group) -> Passes:
    """Interpolate between many directions; see the method's formula."""
    indices, eps, base = group.others, group.parameters["eps"], group.base
    if len(indices) == 1:
        return lambda x: x[indices[0]]
    weights = [group.per_input["weight"][i] for i in indices]
    if group.parameters["normalize_weights"]:
        whole = sum_in_order(weights)
        weights = [w / whole for w in weights]
    dots = _matrix((yield _dots(indices, base)))
    norms = [root(float(dots[i, i, 0])) for i in range(len(indices))]
    units = [w / (n + eps) for w, n in zip(weights, norms, strict=True)]

    # Not from the dot products: that would lose what is left where the directions cancel.
    def mean(x: Elements) -> list[ElementValue]:
        result = x.full(0.0).double()
        for unit, part in zip(units, _differences(x, indices, base), strict=True):
            result = result + part.double() * unit
        return [result * result]

    length = root(float((yield Sums(mean))[0, 0]))
    if length < eps:
        if len(indices) == 2:
            return _combination(indices, weights, base)
        if any(norms):
            raise without_mean(group)
        length = 1.0
    radius = sum_in_order(w * n for w, n in zip(weights, norms, strict=True))
    radius *= at_number(cos, eps)
    return _combination(indices, [u / length * radius for u in units], base)


def karcher(group: Group) -> Passes:
    """Find the Riemannian centre of mass of the directions by fixed-point iteration."""
    tolerance, count = group.parameters["tol"], len(group.tensors)
    if count == 1:
        return lambda x: x[0]
    dots = _matrix((yield _dots(range(count))))[:, :, 0]
    norms = [root(value) for value in dots.diagonal().tolist()]
    valid = [i for i, norm in enumerate(norms) if norm > tolerance]
    if not valid:
        return lambda x: x.full(0.0)
    lengths = np.array([norms[i] for i in valid])
    cosines = (dots[np.ix_(valid, valid)] / lengths / lengths[:, None]).tolist()
    mean = _karcher_mean(cosines, group.parameters["max_iter"], tolerance)
    radius = sum_in_order(norms) / len(norms)
    return _combination(valid, [radius * c / norms[i] for c, i in zip(mean, valid, strict=True)])


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
    length = root(dot(mean, mean))
    mean = [1.0] + [0.0] * (count - 1) if length < tolerance else [c / length for c in mean]
    for _ in range(steps):
        tangent = [0.0] * count
        inner = [math.fsum(c * row[j] for j, c in enumerate(mean)) for row in cosines]
        inner = [min(1.0, max(-1.0, cosine)) for cosine in inner]
        angles = acos(np.array(inner))
        sines = sin(angles).tolist()
        for i, (cosine, angle) in enumerate(zip(inner, angles.tolist(), strict=True)):
            # To where the mean is, or to its antipode, no one direction leads.
            if min(angle, math.pi - angle) < tolerance:
                continue
            scale = angle / sines[i] / count
            tangent = [g - scale * cosine * c for g, c in zip(tangent, mean, strict=True)]
            tangent[i] += scale
        step = root(dot(tangent, tangent))
        if step < tolerance:
            break
        along, across = cos_and_sin(step)
        mean = [along * c + across * g / step for c, g in zip(mean, tangent, strict=True)]
        length = root(dot(mean, mean))
        if length > tolerance:
            mean = [c / length for c in mean]
    return mean


def model_stock(group: Group) -> Passes:
    """Go from the base towards the models' mean as far as their mutual angles say."""
    axis, models = stock_axis(group), group.others
    count = len(models)
    dots = _matrix((yield _dots(models, group.base, axis)))
    norms = [root(dots[i, i]) for i in range(count)]
    cosines = [
        np.clip(dots[i, j] / np.maximum(norms[i] * norms[j], _STOCK_SMALLEST), -1, 1)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = sum(cosines) / len(cosines)
    divisor = 1 + (count - 1) * cosine
    singular = np.abs(divisor) < _STOCK_SMALLEST
    t = np.where(singular, 0, count * cosine / np.where(singular, 1, divisor))
    return _combination(models, [t / count] * count, group.base, axis)


def stock_axis(group: Group) -> Axis:
    """Return the vectors whose angles Model Stock goes by."""
    return "last" if group.parameters["filter_wise"] else "all"


def _differences(x: Elements, indices: Sequence[int], origin: int | None) -> list[ElementValue]:
    return [x[i] if origin is None else x[i] - x[origin] for i in indices]


def _dots(indices: Sequence[int], origin: int | None = None, axis: Axis = "all") -> Sums:
    """Ask for the dot products of inputs, or of their differences from one, each with each."""

    def products(x: Elements) -> list[ElementValue]:
        wide = [part.double() for part in _differences(x, indices, origin)]
        return [left * right for i, left in enumerate(wide) for right in wide[i:]]

    return Sums(products, axis)


def _matrix(sums: np.ndarray) -> np.ndarray:
    """Return dot products as symmetric matrices, float64 [inputs, inputs, vectors]."""
    size = int((2 * len(sums)) ** 0.5)
    result = np.empty((size, size, sums.shape[1]))
    pairs = itertools.combinations_with_replacement(range(size), 2)
    for (i, j), own in zip(pairs, sums, strict=True):
        result[i, j] = result[j, i] = own
    return result


def _combination(
    indices: Sequence[int],
    coefficients: Sequence[float | np.ndarray],
    origin: int | None = None,
    axis: Axis = "all",
) -> Map:
    """Return the linear combination of inputs, or of their differences from one, added to it.

    Args:
        indices: Of the inputs.
        coefficients: One for each; an array has one for each vector along an axis.
        origin: The input that differences are taken from.
        axis: Of the vectors.
    """

    def combined(x: Elements) -> ElementValue:
        total = x.full(0.0)
        for index, coefficient in zip(indices, coefficients, strict=True):
            if isinstance(coefficient, float) and coefficient == 0:
                continue  # 0 * inf is not 0
            factor = coefficient
            if isinstance(coefficient, np.ndarray):
                factor = x.along(coefficient, axis)
            part = x[index] if origin is None else x[index] - x[origin]
            total = total + part * factor
        return total if origin is None else total + x[origin]

    return combined


def without_mean(group: Group) -> UserError:
    """Return the error of directions that have no mean."""
    return UserError(
        "the weighted directions of the models cancel out, so they have no mean",
        group.name or None,
        "Give the models other weights, or merge this tensor with another method.",
    )
