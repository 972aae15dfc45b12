"""The methods that weigh and add task vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shardmerge.base.numerics import sum_in_order
from shardmerge.methods.contract import Group
from shardmerge.methods.passes import Bands, Counts, Elements, ElementValue, Passes, Ranks, Sums
from shardmerge.methods.task_vectors.keep import Keep

#: Norms and weights below these are not divided by.
_SMALLEST_NORM = 1e-7
_SMALLEST_WEIGHT = 1e-8
_SMALLEST_SHARE = 1e-6
#: Returns which elements of a task vector are kept: (elements, task vector) -> mask.
_Mask = Callable[[Elements, ElementValue], ElementValue]


def merge_task_vectors(group: Group, keep: Keep, consensus: bool) -> Passes:
    """Add sparsified, weighted task vectors to the base.

    Args:
        group: With ``weight``, ``density``, ``normalize``, ``rescale`` and ``lambda``.
        keep: Says which elements of a task vector stay.
        consensus: Elect a sign for each element and leave out what disagrees with it.
    """
    base, indices, values = group.base, group.others, group.parameters
    if not indices:
        return lambda x: x[base]
    masks = yield from keep(group)
    factors = dict(zip(indices, [group.per_input["weight"][i] for i in indices], strict=True))
    if values["rescale"] and masks:
        for i, factor in (yield from _rescaling(base, masks)).items():
            factors[i] *= factor
    weights = [group.per_input["weight"][i] for i in indices]
    total = sum_in_order(weights)
    divisor = total if values["normalize"] and abs(total) >= _SMALLEST_WEIGHT else 1.0

    def merged(x: Elements) -> ElementValue:
        parts = [masked(x, base, i, masks) * factors[i] for i in indices]
        mixed = sum_of(x, parts)
        if consensus:
            mixed = agreeing(x, parts, weights, values["normalize"])
        elif divisor != 1.0:
            mixed = x.quotient(mixed, divisor)
        if values["lambda"] != 1:
            mixed = mixed * values["lambda"]
        return mixed + x[base]

    return merged


def sce(group: Group) -> Passes:
    """Select elements by variance, calculate weights by energy, erase minority signs."""
    base, indices = group.base, group.others
    if not indices:
        return lambda x: x[base]
    selected = yield from _most_varied(base, indices, group.parameters["select_topk"])

    def parts(x: Elements) -> list[ElementValue]:
        vectors = [x[i] - x[base] for i in indices]
        if selected is None:
            return vectors
        mask = x.inside(_variance(x, vectors), selected)
        return [x.where(mask, vector, 0.0) for vector in vectors]

    def energies(x: Elements) -> list[ElementValue]:
        wide = [part.double() for part in parts(x)]
        return [part * part for part in wide]

    sums = (yield Sums(energies))[:, 0].tolist()
    shares = [energy / group.count for energy in sums]
    total = sum_in_order(shares)
    weights = [1 / len(shares) if total < _SMALLEST_SHARE else share / total for share in shares]

    def merged(x: Elements) -> ElementValue:
        vectors = parts(x)
        positive = sum_of(x, vectors) >= 0
        divisor = mixed = x.full(0.0)
        for part, weight in zip(vectors, weights, strict=True):
            agrees = _agrees(x, part, positive)
            divisor = divisor + x.number(agrees) * weight
            mixed = mixed + x.where(agrees, part, 0.0) * weight
        divisor = x.where(divisor < _SMALLEST_SHARE, _SMALLEST_SHARE, divisor)
        return x[base] + mixed / divisor

    return merged


def reinforced(group: Group, rescale_unique: bool) -> Passes:
    """Keep what one model changed, average what several changed.

    Args:
        group: With ``epsilon``, and for the rescaling ``r`` and ``alpha``.
        rescale_unique: Amplify what one model alone changed by how much of its change is shared.
    """
    base, indices, epsilon = group.base, group.others, group.parameters["epsilon"]
    if not indices:
        return lambda x: x[base]

    def changes(x: Elements) -> tuple[list[ElementValue], list[ElementValue], ElementValue]:
        parts = [x[i] - x[base] for i in indices]
        changed = [part.abs() > epsilon for part in parts]
        return parts, changed, sum_of(x, [x.number(mask) for mask in changed])

    factors = [1.0] * len(indices)
    if rescale_unique:
        factors = yield from _unique_factors(changes, group.parameters)

    def merged(x: Elements) -> ElementValue:
        parts, changed, count = changes(x)
        mixed = x.full(0.0)
        for part, mask, factor in zip(parts, changed, factors, strict=True):
            scaled = part if factor == 1 else x.where(count.eq(1.0), part * factor, part)
            mixed = mixed + x.where(mask, scaled, 0.0)
        return x[base] + mixed / x.where(count < 1.0, 1.0, count)

    return merged


def shared_and_unique(changes: Callable[[Elements], Any]) -> Counts:
    """Return what counts for each model the changes that others share, and those of its own.

    Args:
        changes: Returns the task vectors, where each changes, and how many do.
    """

    def masks(x: Elements) -> list[ElementValue]:
        _, changed, count = changes(x)
        return [mask & other for mask in changed for other in (count > 1.0, count.eq(1.0))]

    return Counts(masks)


def _unique_factors(changes: Callable[[Elements], Any], parameters: dict) -> Passes:
    """Return 1 + r * (shared / unique changes, at most alpha) for each model."""
    counts = yield shared_and_unique(changes)
    ratios = [
        shared / max(unique, parameters["epsilon"])
        for shared, unique in zip(counts[::2], counts[1::2], strict=True)
    ]
    return [1 + parameters["r"] * min(ratio, parameters["alpha"]) for ratio in ratios]


def _most_varied(base: int, indices: Sequence[int], share: float) -> Passes:
    """Return the band of the largest variances, a share of those that vary at all."""
    if share >= 1:
        return None

    def variance(x: Elements) -> ElementValue:
        return _variance(x, [x[i] - x[base] for i in indices])

    def largest(varied: int) -> Ranks:
        return Ranks(0, int(varied * share) if share > 0 else 0, descending=True)

    (band,) = yield Bands(lambda x: [variance(x)], (largest,), marked=True)
    return band


def _variance(x: Elements, vectors: Sequence[ElementValue]) -> ElementValue:
    """Return the variances of elements between vectors, rounded to the inputs' type."""
    wide, zero = [vector.double() for vector in vectors], x.full(0.0).double()
    mean = x.quotient(sum(wide, zero), len(wide))
    squares = [(part - mean) * (part - mean) for part in wide]
    return x.rounded(x.quotient(sum(squares, zero), len(wide)))


def _rescaling(base: int, masks: dict[int, _Mask]) -> Passes:
    """Return the factors that give masked task vectors the L1 norms of the whole ones."""

    def norms(x: Elements) -> list[ElementValue]:
        values = []
        for i, mask in masks.items():
            part = x[i] - x[base]
            whole = part.abs().double()
            values += [whole * x.number(mask(x, part)).double(), whole]
        return values

    sums = iter((yield Sums(norms))[:, 0].tolist())
    pairs = zip(masks, sums, sums, strict=True)
    return {i: b / a if min(b, a) >= _SMALLEST_NORM else 1.0 for i, a, b in pairs}


def agreeing(
    x: Elements, parts: list[ElementValue], weights: list[float], normalize: bool
) -> ElementValue:
    """Return the sum, or the weighted mean, of the parts that have the elected sign."""
    positive = sum_of(x, parts) >= 0
    divisor = mixed = x.full(0.0)
    for part, weight in zip(parts, weights, strict=True):
        agrees = _agrees(x, part, positive)
        mixed = mixed + x.where(agrees, part, 0.0)
        divisor = divisor + x.number(agrees) * weight
    return mixed / x.where(divisor.eq(0.0), 1.0, divisor) if normalize else mixed


def _agrees(x: Elements, part: ElementValue, positive: ElementValue) -> ElementValue:
    return x.where(positive, part > 0, part < 0)


def sum_of(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
    """Return a sum in the order of the parts, from zero."""
    return sum(parts, x.full(0.0))


def masked(x: Elements, base: int, index: int, masks: dict[int, _Mask]) -> ElementValue:
    """Return what is kept of an input's task vector, 0 elsewhere."""
    part = x[index] - x[base]
    return x.where(masks[index](x, part), part, 0.0) if index in masks else part
