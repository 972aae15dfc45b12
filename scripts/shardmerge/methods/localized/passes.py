"""The methods that choose by masks which elements matter to which models, in passes."""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.methods.contract import Group
from shardmerge.methods.passes import Elements, ElementValue, Passes
from shardmerge.methods.task_vectors.keep import magnitude
from shardmerge.methods.task_vectors.passes import agreeing, masked, sum_of


def consensus_sum(group: Group) -> Passes:
    """Add weighted task vectors where an element matters to enough models."""

    def merged(x: Elements) -> ElementValue:
        parts = _weighted(x, group)
        return _in_consensus(group, x, parts, sum_of(x, parts))

    return merged
    yield


def consensus_ties(group: Group) -> Passes:
    """Make TIES' task vector, and keep of it what matters to enough models."""
    masks = yield from magnitude(group)
    weights = [group.per_input["weight"][i] for i in group.others]

    def merged(x: Elements) -> ElementValue:
        pairs = zip(group.others, weights, strict=True)
        trimmed = [masked(x, group.base, i, masks) * weight for i, weight in pairs]
        mixed = agreeing(x, trimmed, weights, group.parameters["normalize"])
        return _in_consensus(group, x, _weighted(x, group), mixed)

    return merged


def localize_and_stitch(group: Group) -> Passes:
    """Take the mean of the task vectors' largest elements."""
    if not group.others:
        return lambda x: x[group.base]
    masks = yield from magnitude(group)

    def merged(x: Elements) -> ElementValue:
        kept, count = [], x.full(0.0)
        for i in group.others:
            part = x[i] - x[group.base]
            there = masks[i](x, part) if i in masks else x.full(0.0).eq(0.0)
            kept.append(x.where(there, part, 0.0))
            count = count + x.number(there)
        return x[group.base] + sum_of(x, kept) / x.where(count < 1.0, 1.0, count)

    return merged


def _weighted(x: Elements, group: Group) -> list[ElementValue]:
    return [(x[i] - x[group.base]) * group.per_input["weight"][i] for i in group.others]


def _in_consensus(
    group: Group, x: Elements, parts: Sequence[ElementValue], merged: ElementValue
) -> ElementValue:
    """Return the base plus what of a merged task vector matters to enough models."""
    count = x.full(0.0)
    for index, part in zip(group.others, parts, strict=True):
        others = (merged - part).abs() * group.per_input["threshold"][index]
        count = count + x.number(part.abs() >= others)
    chosen = x.where(count >= group.parameters["agreement"], merged, 0.0)
    return chosen * group.parameters["lambda"] + x[group.base]
