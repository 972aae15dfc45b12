"""mergekit 0.1.5's Arcee Fusion in passes: the bits of ``mergekit``'s kernel.

Torch makes the divergences of rows, a few rows at a time, since their exponentials and logarithms
are its libraries'. An element of a row has the same bits however many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shardmerge.base.dtypes import DTYPES
from shardmerge.methods.blending import mergekit
from shardmerge.methods.contract import Group
from shardmerge.methods.passes import (
    Elements,
    ElementValue,
    Passes,
    RowStatistics,
    TorchRows,
)


def arcee_fusion(group: Group) -> Passes:
    """Choose elements by importance over a quantile; float32 is what the choice makes of them."""
    (index,), base = group.others, group.base

    def divergences(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return mergekit.divergences(tensors[index], tensors[base])

    def importance(x: Elements, divergence: ElementValue) -> ElementValue:
        return (x[index] - x[base]).abs() * divergence

    def places() -> np.ndarray:
        return mergekit.sampled_places(group, group.count).numpy()

    ranks = mergekit.quartiles(min(group.count, mergekit.SAMPLE)).tolist()
    wanted = RowStatistics(TorchRows(divergences), _first, importance, tuple(ranks), places)
    divergence, found = yield wanted
    dtype = getattr(torch, DTYPES[group.dtype].name)
    threshold = float(mergekit.threshold(*torch.tensor(found, dtype=dtype)))

    def merged(x: Elements) -> ElementValue:
        mask = wanted.values(divergence, x) >= threshold
        kept = x.single(x.number(mask))
        return x.single(x[base]) + x.single(x[index] - x[base]) * kept

    return merged


def _first(found: np.ndarray) -> np.ndarray:
    return found[0]
