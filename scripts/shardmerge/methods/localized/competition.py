"""PCB-Merging in passes: elements of task vectors compete, within and between models."""

from __future__ import annotations

import itertools

from shardmerge.methods.contract import Group
from shardmerge.methods.elementary import exp
from shardmerge.methods.passes import Bands, Elements, ElementValue, KeyBand, Maxima, Passes, Sums
from shardmerge.methods.task_vectors.keep import largest_ranks
from shardmerge.methods.task_vectors.passes import sum_of


def pcb(group: Group) -> Passes:
    """Weigh each element by its score, and add what is left of the task vectors."""
    base, indices = group.base, group.others
    if not indices:
        return lambda x: x[base]
    scores = yield from _competition(group)
    ranks = largest_ranks(group)
    bands: dict[int, KeyBand] = {}
    if ranks:

        def ranked(x: Elements) -> list[ElementValue]:
            found = scores(x)
            return [found[i] for i in ranks]

        found = yield Bands(ranked, tuple(ranks.values()))
        bands = dict(zip(ranks, found, strict=True))

    def merged(x: Elements) -> ElementValue:
        shares = {
            i: score * x.number(x.inside(score, bands[i])) if i in bands else score
            for i, score in scores(x).items()
        }
        divisor = sum_of(x, list(shares.values()))
        weights = group.per_input["weight"]
        mixed = sum_of(x, [(x[i] - x[base]) * weights[i] * shares[i] for i in indices])
        mixed = mixed / x.where(divisor.eq(0.0), 1.0, divisor)
        return x[base] + mixed * group.parameters["lambda"]

    return merged


def _competition(group: Group) -> Passes:
    """Return what makes each input's scores, in the inputs' type, scaled to a mean of about 1."""
    base, indices = group.base, group.others
    pairs = list(itertools.combinations_with_replacement(indices, 2))

    def products(x: Elements) -> list[ElementValue]:
        wide = {i: (x[i] - x[base]).double() for i in indices}
        return [wide[i] * wide[j] for i, j in pairs]

    def both_signs(x: Elements) -> list[ElementValue]:
        return [signed for product in products(x) for signed in (product, product * -1.0)]

    ends = iter((yield Maxima(both_signs))[:, 0].tolist())
    # high - low, where low is the greatest of the other sign
    sizes = [
        (-other, high + other if high > -other else 1.0)
        for high, other in zip(ends, ends, strict=True)
    ]

    def powers(x: Elements) -> list[ElementValue]:
        """Return the numerators of the softmaxes within each input, then between each pair."""
        scaled = zip(products(x), sizes, strict=True)
        between = [
            exp(x, x.quotient(one - low, width), inside=True) for one, (low, width) in scaled
        ]
        own = [value for value, (i, j) in zip(between, pairs, strict=True) if i == j]
        # exp(n x) is exp(x)**n: one exponential less for each input
        return [*(_power(value, len(indices)) for value in own), *between]

    factors = [group.count / total for total in (yield Sums(powers))[:, 0].tolist()]

    def scores(x: Elements) -> dict[int, ElementValue]:
        shares = [power * factor for power, factor in zip(powers(x), factors, strict=True)]
        between = dict(zip(pairs, shares[len(indices) :], strict=True))
        found = {}
        for i, within in zip(indices, shares, strict=False):
            total = x.full(0.0).double()
            for j in indices:
                total = total + between[min(i, j), max(i, j)]
            found[i] = x.rounded(total * within)
        return found

    return scores


def _power(value: ElementValue, exponent: int) -> ElementValue:
    """Return a power of values, by squares."""
    if exponent == 1:
        return value
    square = _power(value * value, exponent // 2)
    return square * value if exponent % 2 else square
