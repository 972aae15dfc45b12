"""The methods that choose or blend element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from shardmerge.base.numerics import sum_in_order
from shardmerge.methods.contract import Group
from shardmerge.methods.elementary import exp, exp_single, falling, log, rest_of_log
from shardmerge.methods.passes import (
    RAISED_SINGLE,
    Elements,
    ElementValue,
    Passes,
    RowStatistics,
    RowSteps,
)

_SMALLEST_DISTANCE = 1e-6
#: A logit that is further below the greatest of its row counts as if it were not: its probability
#: is less than what float32 holds of the others. (mergekit adds 1e-8 to each probability.)
_LEAST_LOGIT = -80.0
#: Where ``rest_of_log`` is right.
_NEAR = (-0.25, 0.33)
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
    wanted = RowStatistics(_divergence(index, base), _not_negative, importance, ranks)
    divergence, (lower, median, upper) = yield wanted
    threshold = median + 1.5 * (upper - lower)

    def chosen(x: Elements) -> ElementValue:
        return x.where(wanted.values(divergence, x) >= threshold, x[index], x[base])

    return chosen


def _not_negative(divergence: np.ndarray) -> np.ndarray:
    return np.maximum(divergence[0], 0)


def _divergence(first: int, second: int) -> RowSteps:
    """Ask for the Kullback-Leibler divergences of the softmaxes of two inputs' rows.

    With the softmaxes P and Q of two rows and t = a - b, the difference of their logits, the
    divergence of Q from P is ``E[t] + log E[exp(-t)]``, where E is the mean by P. If t is small
    these two nearly cancel. So ``E[exp(-t) - 1 + t]`` is found too, whose terms are never below 0:
    that float32 rounds them, and the probabilities, changes the divergence by about as much.
    """
    Values = Sequence[ElementValue]

    def wide(x: Elements, _: Values) -> Values:
        return [x[i].double() for i in (first, second)]

    def parts(x: Elements, greatest: Values) -> Values:
        top, other = map(x.rounded, greatest)
        # 0 if the greatest logits are near each other: then t is exact
        apart = (x.single(other - top) + RAISED_SINGLE) - RAISED_SINGLE
        logits = []
        for i, one in ((first, top), (second, top + apart)):
            least = one + _LEAST_LOGIT
            logits.append(x.where(x[i] < least, least, x[i]))
        weight = exp_single(x, x.single(logits[0] - top))
        difference = x.single(logits[0] - logits[1] + apart).clamp(_LEAST_LOGIT, -_LEAST_LOGIT)
        ratio, excess = falling(x, difference)
        return weight, weight * ratio, weight * difference, weight * excess

    def divergence(x: Elements, sums: Values) -> ElementValue:
        total, other, difference, excess = sums
        mean, excess = difference / total, excess / total
        near = excess - mean  # E[exp(-t)] - 1
        is_near = (near > _NEAR[0]) & (near < _NEAR[1])
        return x.where(is_near, excess - rest_of_log(near), log(x, other / total) + mean)

    return RowSteps((("maxima", wide), ("sums", parts)), result=divergence)


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
