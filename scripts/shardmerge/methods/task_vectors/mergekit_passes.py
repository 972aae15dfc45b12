"""mergekit 0.1.5's merges of task vectors in passes: the bits of ``mergekit``'s kernels.

What is made of values is rounded to their type, as torch does. A 16-bit sum of a few models is
made in float32, from zero, and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from shardmerge.methods.contract import Group
from shardmerge.methods.passes import (
    Chances,
    Counts,
    Elements,
    ElementValue,
    Masks,
    NumbersOf,
    Passes,
    Ranks,
    RowChances,
    TorchChoice,
    TorchDraws,
    TorchSums,
)
from shardmerge.methods.program import nearest
from shardmerge.methods.task_vectors.keep import generator_seed, largest_ranks, middle_ranks
from shardmerge.methods.task_vectors.passes import shared_and_unique

if TYPE_CHECKING:
    import numpy as np

#: Returns the mask of the elements of a task vector that are kept.
_Mask = Callable[[Elements], ElementValue]


@dataclass(frozen=True)
class Kept:
    """What is kept of task vectors.

    Args:
        masks: Of those inputs of which not all is kept; None if nothing is.
        code: Of the type in which the rest is left out, and norms are made.
    """

    masks: dict[int, _Mask | None]
    code: str


#: Passes that return what is kept of each task vector.
Keep = Callable[[Group], Passes]
_SMALLEST_NORM, _SMALLEST_WEIGHT, _SMALLEST_SHARE = 1e-7, 1e-8, 1e-6
#: Bits of a random number.
_DRAWN = 24


def merge_task_vectors(group: Group, keep: Keep | None, consensus: bool) -> Passes:
    """Add sparsified, weighted task vectors to the base.

    Args:
        group: As of the kernel.
        keep: Says which elements of a task vector stay.
        consensus: Elect a sign for each element and leave out what disagrees with it.
    """
    base, indices, values = group.base, group.others, group.parameters
    if not indices:
        return lambda x: x[base]
    kept = (yield from keep(group)) if keep else Kept({}, group.dtype)
    factors = (yield from _rescaling(group, kept)) if values["rescale"] else {}
    weights = [group.per_input["weight"][i] for i in indices]
    weighted = set(weights) != {1.0}

    def vector(x: Elements, index: int, weight: float) -> ElementValue:
        part = _difference(x, index, base)
        if index in kept.masks:
            mask = kept.masks[index]
            part = _masked(group, x, part, mask, kept.code) if mask else x.full(0.0)
            if index in factors:
                part = part * factors[index]
            part = x.rounded(part)
        return part * x.full(weight) if weighted else part

    def merged(x: Elements) -> ElementValue:
        parts = [vector(x, *pair) for pair in zip(indices, weights, strict=True)]
        if consensus:
            agree = [x.number(mask) for mask in _agreeing(x, parts)]
            mixed = _sum(x, [a * b for a, b in zip(parts, agree, strict=True)])
            shares = [a * x.full(w) for a, w in zip(agree, weights, strict=True)]
        else:
            mixed, shares = _sum(x, parts), [x.full(weight) for weight in weights]
        if values["normalize"]:
            divisor = _sum(x, shares)
            zero = divisor.eq(0.0) if consensus else divisor.abs() < x.full(_SMALLEST_WEIGHT)
            mixed = mixed / x.where(zero, 1.0, divisor)
        if values["lambda"] != 1:
            mixed = mixed * values["lambda"]
        return x[base] + mixed

    return merged


def chance(group: Group) -> Passes:
    """Keep each element with one probability."""
    density = group.per_input["density"]
    thinned = [i for i in group.others if density[i] < 1]
    numbers = yield TorchDraws(generator_seed(group))
    code = _random_code(group)
    bounds = (_bound(nearest(density[i], code)) for i in thinned)
    found = yield Chances(_turns(group, numbers, len(thinned)), tuple(bounds))
    return Kept({i: _chosen(mask) for i, mask in zip(thinned, found, strict=True)}, code)


@dataclass(frozen=True)
class _Turn:
    """The numbers that are drawn for a tensor after those of others.

    Args:
        numbers: Of the generator.
        begin: How many are drawn before.
    """

    numbers: NumbersOf
    begin: int

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the numbers of consecutive elements."""
        return self.numbers(self.begin + first, count)

    def of_spans(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the numbers of spans of elements, ascending, one after the other."""
        return self.numbers.of_spans([(self.begin + first, count) for first, count in spans])


def _turns(group: Group, numbers: NumbersOf, count: int) -> tuple[NumbersOf, ...]:
    """Return the numbers of each of so many tensors that are drawn for one after the other."""
    return tuple(_Turn(numbers, turn * group.count) for turn in range(count))


def ranked_chance(group: Group) -> Passes:
    """Keep each element with a probability that grows with its rank in its row, by torch's sort."""
    density, base = group.per_input["density"], group.base
    masks: dict[int, _Mask | None] = {i: None for i in group.others if density[i] < 1}
    ranked = [i for i in masks if density[i] > 0]
    if not ranked:
        return Kept(masks, _random_code(group))
    numbers = yield TorchDraws(generator_seed(group))
    epsilon, code = group.per_input["epsilon"], _random_code(group)
    length = group.shape[1] if len(group.shape) > 1 else group.count
    found = yield RowChances(
        lambda x: [_difference(x, i, base).abs() for i in ranked],
        _turns(group, numbers, len(ranked)),
        tuple(_bounds_of_ranks(length, density[i], epsilon[i], code) for i in ranked),
        by_torch=True,
    )

    masks |= {i: _chosen(mask) for i, mask in zip(ranked, found, strict=True)}
    return Kept(masks, _random_code(group))


def magnitude(group: Group) -> Passes:
    """Keep the largest magnitudes, by torch's sort."""
    ranks = largest_ranks(group)
    masks: dict[int, _Mask | None] = dict.fromkeys(ranks)
    some = {i: one for i, one in ranks.items() if group.per_input["density"][i] > 0}
    return Kept(masks | (yield from _at_ranks(group.base, some)), group.dtype)


def between(group: Group) -> Passes:
    """Drop the largest and the smallest magnitudes, by torch's sort."""
    return Kept((yield from _at_ranks(group.base, middle_ranks(group))), group.dtype)


def _at_ranks(base: int, ranks: dict[int, Ranks]) -> Passes:
    """Return the masks of the task vectors' magnitudes of some ranks."""
    if not ranks:
        return {}

    def magnitudes(x: Elements) -> list[ElementValue]:
        return [_difference(x, i, base).abs() for i in ranks]

    found = yield TorchChoice(magnitudes, tuple(ranks.values()))
    return {i: _chosen(mask) for i, mask in zip(ranks, found, strict=True)}


def _chosen(mask: Masks) -> _Mask:
    return lambda x: x.chosen(mask)


@lru_cache(maxsize=16)
def _bounds_of_ranks(length: int, density: float, epsilon: float, code: str) -> np.ndarray:
    """Return by rank what numbers of the kept are below, uint32 [length], as torch makes it.

    Args:
        length: Of a row.
        density, epsilon: Of the model.
        code: Of the type of random numbers.
    """
    import numpy as np
    import torch

    ranks = torch.arange(length).to(torch.bfloat16 if code == "BF16" else torch.float32) + 1
    relative = ((ranks - ranks.amin()) / (ranks.amax() - ranks.amin())).clamp(0, 1)
    chances = ((density - epsilon) + relative * 2 * epsilon).double().numpy()
    return np.ceil(chances * 2.0**_DRAWN).astype(np.uint32)


def sce(group: Group) -> Passes:
    """Select by variance, weigh by energy, erase minority signs."""
    base, indices = group.base, group.others
    if not indices:
        return lambda x: x[base]
    selects = group.parameters["select_topk"] < 1
    selected = (yield from _most_varied(group)) if selects else None

    def parts(x: Elements) -> list[ElementValue]:
        vectors = [_difference(x, i, base) for i in indices]
        if not selects:
            return vectors
        number = x.number(selected(x)) if selected else x.full(0.0)
        return [vector * number for vector in vectors]

    def energies(x: Elements) -> list[ElementValue]:
        return [x.single(vector * vector) for vector in parts(x)]

    sums = (yield TorchSums(energies))[:, 0].tolist()
    code, single = group.dtype, "F32"
    means = [nearest(nearest(one / group.count, single), code) for one in sums]
    total = nearest(_in_order(means), code)
    alike = abs(total) < _SMALLEST_SHARE
    weights = [nearest(1 / len(means) if alike else one / total, code) for one in means]

    def merged(x: Elements) -> ElementValue:
        vectors = parts(x)
        masks = _agreeing(x, vectors)
        shares = [x.full(w) * x.number(m) for w, m in zip(weights, masks, strict=True)]
        mixed = _sum(x, [v * s for v, s in zip(vectors, shares, strict=True)])
        divisor, least = _sum(x, shares), x.full(_SMALLEST_SHARE)
        return x[base] + mixed / x.where(divisor < least, least, divisor)

    return merged


def _most_varied(group: Group) -> Passes:
    """Return the mask of the elements of largest variance, by ``torch.topk``; None if of none."""

    def variance(x: Elements) -> ElementValue:
        return _variance(x, [_difference(x, i, group.base) for i in group.others])

    if not (share := group.parameters["select_topk"]) > 0:
        return None
    (number,) = yield Counts(lambda x: [variance(x).ne(0.0)])
    if not (kept := int(number * share)):
        return None
    ranks = Ranks(0, kept, descending=True)
    (mask,) = yield TorchChoice(lambda x: [variance(x)], (ranks,), "topk")
    return _chosen(mask)


def _variance(x: Elements, parts: Sequence[ElementValue]) -> ElementValue:
    """Return the variance between models: in float64, each mean from the one before it."""
    mean = squares = x.full(0.0).double()
    for count, part in enumerate(parts, 1):
        apart = part.double() - mean
        mean = mean + x.quotient(apart, count)
        squares = squares + apart * (part.double() - mean)
    return x.rounded(x.quotient(squares, len(parts)))


def reinforced(group: Group, rescale_unique: bool) -> Passes:
    """Keep unique changes, amplified if asked, average shared ones."""
    base, indices, epsilon = group.base, group.others, group.parameters["epsilon"]
    if not indices:
        return lambda x: x[base]

    def changes(x: Elements) -> tuple[list[ElementValue], list[ElementValue], ElementValue]:
        parts = [_difference(x, i, base) for i in indices]
        changed = [part.abs() > x.full(epsilon) for part in parts]
        return parts, changed, _sum(x, [x.number(mask) for mask in changed])

    factors: list[float] = []
    if rescale_unique:
        factors = yield from _unique_factors(changes, group.parameters)

    def merged(x: Elements) -> ElementValue:
        parts, changed, count = changes(x)
        unique, shared = x.number(count.eq(1.0)), x.number(count > 1.0)
        some = x.where(count < 1.0, 1.0, count)
        mixed = []
        for position, (part, mask) in enumerate(zip(parts, changed, strict=True)):
            kept = part * x.number(mask)
            alone = kept * unique
            if factors:
                alone = x.single(alone) * factors[position]
            mixed.append(alone + kept * shared / some)
        total = _sum(x, mixed, wide=rescale_unique)
        return x[base] + total

    return merged


def _unique_factors(changes: Callable[[Elements], tuple], parameters: dict) -> Passes:
    """Return 1 + r * (shared / unique changes, at most alpha) for each model, in float32."""
    import numpy as np

    counts = np.array((yield shared_and_unique(changes)), np.float32)
    least, r, most = (np.float32(parameters[name]) for name in ("epsilon", "r", "alpha"))
    with np.errstate(all="ignore"):
        ratio = counts[::2] / np.maximum(counts[1::2], least)
        return (1 + r * np.minimum(np.maximum(ratio, np.float32(0)), most)).tolist()


def _difference(x: Elements, index: int, base: int) -> ElementValue:
    return x[index] - x[base]


def _masked(group: Group, x: Elements, part: ElementValue, mask: _Mask, code: str) -> ElementValue:
    """Return what is kept, 0 times the rest, in the type of a code."""
    number = x.number(mask(x))
    if code == group.dtype:
        return part * number
    return x.single(part) * x.single(number)


def _random_code(group: Group) -> str:
    """Return the code of the type in which mergekit draws on a CPU."""
    return "BF16" if group.dtype == "BF16" else "F32"


def _rescaling(group: Group, kept: Kept) -> Passes:
    """Return for each task vector its L1 norm over that of what is kept of it, in torch's bits."""
    code, masks = kept.code, {i: mask for i, mask in kept.masks.items() if mask}
    if not masks:
        return {}

    def magnitudes(x: Elements) -> list[ElementValue]:
        found = []
        for index, mask in masks.items():
            part = _difference(x, index, group.base)
            whole = part if code == group.dtype else x.single(part)
            found += [whole.abs(), _masked(group, x, part, mask, code).abs()]
        return found

    sums = iter((yield TorchSums(magnitudes))[:, 0].tolist())
    least = nearest(_SMALLEST_NORM, code)
    pairs = zip(masks, sums, sums, strict=True)
    return {
        i: nearest(nearest(before / after, "F32"), code)
        for i, before, after in pairs
        if not (before < least or after < least)
    }


def _agreeing(x: Elements, parts: Sequence[ElementValue]) -> list[ElementValue]:
    """Return the masks of what has the elected sign."""
    positive = _sum(x, parts) >= 0
    return [x.where(positive, part > 0, part < 0) for part in parts]


def _sum(x: Elements, parts: Sequence[ElementValue], wide: bool = False) -> ElementValue:
    """Return a sum in the order of the parts, from zero, rounded to their type unless wide."""
    total = x.single(x.full(0.0))
    for part in parts:
        total = total + x.single(part)
    return total if wide else x.rounded(total)


def _in_order(numbers: Sequence[float]) -> float:
    total = 0.0
    for number in numbers:
        total = nearest(total + number, "F32")
    return total


def _bound(probability: float) -> int:
    """Return the least number of 24 bits that is no less than a probability."""
    return math.ceil(probability * 2.0**_DRAWN)
