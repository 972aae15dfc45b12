"""Fisher averaging and MetaGPT's sum, element by element."""

from __future__ import annotations

import math

from shardmerge.methods.contract import Group
from shardmerge.methods.passes import Elements, ElementValue, Passes


def fisher(group: Group) -> Passes:
    """Take the mean of the first half of the inputs, weighed by the second half."""
    count, floor = len(group.tensors) // 2, group.parameters["floor"]
    weights = group.per_input["weight"]

    def mean(x: Elements) -> ElementValue:
        above = below = None
        for i in range(count):
            share = x[count + i].clamp(floor, math.inf) * weights[i]
            part = share * x[i]
            above = part if above is None else above + part
            below = share if below is None else below + share
        return above / below

    return mean
    yield


def weighted_sum(group: Group) -> Passes:
    """Add to the base each other model's difference from it times its coefficient."""
    count = (len(group.tensors) + 1) // 2
    others = [i for i in range(count) if i != group.base]

    def total(x: Elements) -> ElementValue:
        result = x[group.base]
        for factor, i in enumerate(others, count):
            result = result + (x[i] - x[group.base]) * x[factor]
        return result

    return total
    yield
