"""Which elements of a task vector are kept: by magnitude, by chance, or by both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.keys import Key, RandomStream, stream_key
from shardmerge.methods.passes import (
    Bands,
    Chances,
    Elements,
    ElementValue,
    KeyBand,
    Masks,
    Passes,
    Ranks,
    RowChances,
)

if TYPE_CHECKING:
    import numpy as np

#: Passes that return masks for those inputs' task vectors of which not all is kept.
Keep = Callable[[Group], Passes]


def stream(group: Group, index: int | None) -> Key:
    """Return the key of the random numbers for one input of a group, or for all (None)."""
    values = group.parameters
    model = "" if index is None else group.models[index] if group.models else str(index)
    return stream_key(int(values.get("seed", 0)), values.get("stage", ""), group.name, model)


def generator_seed(group: Group) -> int:
    """Return the seed of the generator of mergekit numerics, 63 bits of a digest, for a tensor."""
    return stream(group, None)[0] >> 1


def kept_magnitudes(count: int, density: float) -> tuple[int, int]:
    """Return the descending ranks of magnitude that TIES keeps, as (start, stop)."""
    return 0, max(1, int(density * count)) if density > 0 else 0


def kept_between(count: int, density: float, gamma: float) -> tuple[int, int]:
    """Return the ascending ranks of magnitude that Model Breadcrumbs keeps, as (start, stop)."""
    kept = int(density * count)
    start = max(0, count - kept - int(gamma * count))
    return start, start + kept


def magnitude(group: Group) -> Passes:
    """Keep the ``density`` largest magnitudes."""
    # who rescales looks at what is kept twice
    twice = bool(group.parameters.get("rescale"))
    return (yield from _banded(group.base, largest_ranks(group), marked=twice))


def largest_ranks(group: Group) -> dict[int, Ranks]:
    """Return the ranks of the ``density`` largest, for inputs of which not all is kept."""
    return {
        i: Ranks(*kept_magnitudes(group.count, group.per_input["density"][i]), descending=True)
        for i in _thinned(group)
    }


def between(group: Group) -> Passes:
    """Keep ``density`` of the magnitudes, without the ``gamma`` largest and the smallest."""
    return (yield from _banded(group.base, middle_ranks(group)))


def middle_ranks(group: Group) -> dict[int, Ranks]:
    """Return the ranks between the ``gamma`` largest and the smallest, as ``largest_ranks``."""
    return {
        i: Ranks(*kept_between(group.count, *(group.per_input[n][i] for n in ("density", "gamma"))))
        for i in _thinned(group)
    }


def chance(group: Group) -> Passes:
    """Keep each element with probability ``density``."""
    thinned, density = _thinned(group), group.per_input["density"]
    if not thinned:
        return {}
    # a draw is a number of 32 bits over 2**32
    found = yield Chances(
        tuple(RandomStream(stream(group, i)) for i in thinned),
        tuple(math.ceil(density[i] * 2.0**32) for i in thinned),
    )
    return _chosen(thinned, found)


def _chosen(
    indices: Sequence[int], masks: Sequence[Masks]
) -> dict[int, Callable[[Elements, ElementValue], ElementValue]]:
    """Return which elements of task vectors masks tell of."""

    def of(mask: Masks) -> Callable[[Elements, ElementValue], ElementValue]:
        return lambda x, part: x.chosen(mask)

    return {i: of(mask) for i, mask in zip(indices, masks, strict=True)}


def _thinned(group: Group) -> Sequence[int]:
    """Return the inputs of which not all is kept."""
    return [i for i in group.others if group.per_input["density"][i] < 1]


def _banded(base: int, ranks: dict[int, Ranks], *, marked: bool = False) -> Passes:
    if not ranks:
        return {}

    def magnitudes(x: Elements) -> list[ElementValue]:
        return [(x[i] - x[base]).abs() for i in ranks]

    def of(band: KeyBand) -> Callable[[Elements, ElementValue], ElementValue]:
        return lambda x, part: x.inside(part.abs(), band)

    bands = yield Bands(magnitudes, tuple(ranks.values()), marked=marked)
    return {i: of(band) for i, band in zip(ranks, bands, strict=True)}


def ranked_chance(group: Group) -> Passes:
    """Keep each element with a probability that grows with its rank within its row.

    The probability goes from ``density - epsilon`` for the smallest to ``density + epsilon``.
    """
    base, density, shape = group.base, group.per_input["density"], group.shape
    ranked = [i for i in _thinned(group) if density[i] > 0]
    none = {i: lambda x, part: x.full(0.0).ne(0.0) for i in _thinned(group)}
    if not ranked:
        return none
    length = shape[1] if len(shape) > 1 else group.count
    found = yield RowChances(
        lambda x: [(x[i] - x[base]).abs() for i in ranked],
        tuple(RandomStream(stream(group, i)) for i in ranked),
        tuple(_bounds(density[i], group.per_input["epsilon"][i], length) for i in ranked),
    )
    return none | _chosen(ranked, found)


def _bounds(density: float, epsilon: float, length: int) -> np.ndarray:
    """Return by rank the least number of 32 bits that is not chosen, uint64 [length]."""
    import numpy as np

    # A row of one element has the mean probability.
    relative = np.arange(length) / (length - 1) if length > 1 else np.full(1, 0.5)
    chances = (density - epsilon) + relative * (2 * epsilon)
    # a draw is a number of 32 bits over 2**32
    return np.ceil(np.clip(chances, 0, 1) * 2.0**32).astype(np.uint64)
