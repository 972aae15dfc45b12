"""The methods that choose or blend element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shardmerge.base.numerics import sum_in_order
from shardmerge.methods.contract import Group
from shardmerge.methods.elementary import exp, log, near_exp
from shardmerge.methods.passes import (
    Elements,
    ElementValue,
    Passes,
    RowStatistics,
    RowSteps,
)

_SMALLEST_DISTANCE = 1e-6
_SMALLEST_PROBABILITY = 1e-8
#: The smallest normal number of float64.
_SMALLEST_RATIO = 2.0**-1022


def nearswap(group: Group) -> Passes:
    """Move elements that are near the base's to the other model's."""
    near, (index,), base = group.parameters["t"], group.others, group.base

    def blended(x: Elements) -> ElementValue:
        distance = (x[base] - x[index]).abs()
        distance = x.where(distance < _SMALLEST_DISTANCE, _SMALLEST_DISTANCE, distance)
        share = x.full(near) / distance
        share = x.where(share < 0.0, 0.0, share)
        share = x.where(share > 1.0, 1.0, share)
        return share * x[index] + (x.full(1.0) - share) * x[base]

    return blended
    yield


def mergekit_nearswap(group: Group) -> Passes:
    """Do the same as mergekit 0.1.5: where each step is rounded, by reciprocals."""
    near, (index,), base = group.parameters["t"], group.others, group.base

    def blended(x: Elements) -> ElementValue:
        distance, least = (x[base] - x[index]).abs(), x.full(_SMALLEST_DISTANCE)
        distance = x.where(distance < least, least, distance)
        share = (x.full(1.0) / distance) * near
        share = x.where(share < 0.0, 0.0, share)
        share = x.where(share > 1.0, 1.0, share)
        return share * x[index] + (x.full(1.0) - share) * x[base]

    return blended
    yield


def arcee_fusion(group: Group) -> Passes:
    """Take the elements of the other model that matter most, the rest from the base."""
    (index,), base = group.others, group.base

    def importance(x: Elements, divergence: ElementValue) -> ElementValue:
        return (x[index] - x[base]).abs() * divergence

    last = group.count - 1
    ranks = tuple(int(quantile * last) for quantile in (0.25, 0.5, 0.75))
    wanted = RowStatistics(_divergence([index, base]), _not_negative, importance, ranks)
    divergence, (lower, median, upper) = yield wanted
    threshold = median + 1.5 * (upper - lower)

    def chosen(x: Elements) -> ElementValue:
        return x.where(wanted.values(divergence, x) >= threshold, x[index], x[base])

    return chosen


def _not_negative(divergence: np.ndarray) -> np.ndarray:
    return np.maximum(divergence[0], 0)


def _divergence(pair: Sequence[int]) -> RowSteps:
    """Ask for the Kullback-Leibler divergences of the softmaxes of two inputs' rows."""
    Values = Sequence[ElementValue]

    def wide(x: Elements, *_: Values) -> Values:
        return [x[i].double() for i in pair]

    def exponentials(x: Elements, greatest: Values, values: Values) -> Values:
        pairs = zip(values, greatest, strict=True)
        return [near_exp(x, value - peak) for value, peak in pairs]

    def terms(x: Elements, totals: Values, values: Values) -> Values:
        inverses = [x.full(1.0).double() / total for total in totals]
        pairs = zip(values, inverses, strict=True)
        p, q = (value * inverse + _SMALLEST_PROBABILITY for value, inverse in pairs)
        return [log(x, p / q) * p]

    return RowSteps((("maxima", wide), ("sums", exponentials), ("sums", terms)))


def geometric_task_arithmetic(group: Group) -> Passes:
    """Multiply the base by the models' ratios to it; add where a ratio makes no sense."""
    offset, factor = group.parameters["offset"], group.parameters["lambda"]
    weights, indices = group.per_input["weight"], group.others
    total = sum_in_order(weights[i] for i in indices)
    if group.parameters["normalize"]:
        factor /= total if abs(total) >= 1e-8 else 1.0
    exponents = {i: weights[i] * factor for i in indices if weights[i] * factor != 0}

    def shifted(value: ElementValue, by: float) -> ElementValue:
        return value + by if by else value

    def merged(x: Elements) -> ElementValue:
        base = shifted(x[group.base].double(), offset)
        # a zero of the base has no sign
        product, additive, sensible = base, base + 0.0, base.ne(0.0)
        logarithm = None
        for i, exponent in exponents.items():
            model = shifted(x[i].double(), offset)
            ratio = model / base
            sensible = sensible & (ratio >= _SMALLEST_RATIO) & (ratio < math.inf)
            additive = additive + (model - base) * exponent
            if exponent == 1:
                product = product * ratio
                continue
            term = log(x, ratio) * exponent
            logarithm = term if logarithm is None else logarithm + term
        if logarithm is not None:
            product = product * exp(x, logarithm)
        return x.rounded(shifted(x.where(sensible, product, additive), -offset))

    return merged
    yield
