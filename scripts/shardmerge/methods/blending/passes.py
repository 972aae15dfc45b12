"""The methods that blend element by element."""

from __future__ import annotations

from shardmerge.methods.contract import Group
from shardmerge.methods.passes import Elements, ElementValue, Passes

_SMALLEST_DISTANCE = 1e-6


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
