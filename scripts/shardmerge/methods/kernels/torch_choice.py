"""Which elements torch's sorts put at some ranks."""

from __future__ import annotations

import numpy as np
import torch

from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import Order, Ranks


def torch_mask(values: torch.Tensor, ranks: Ranks, order: Order) -> BitMask:
    """Return the mask of what torch puts at some ranks on a CPU.

    Args:
        values: One-dimensional, on the CPU, of the type that is sorted.
        ranks: Of those of ``topk`` the first is 0, and they descend.
        order: Which of torch's functions is asked.
    """
    if order == "topk":
        chosen = torch.topk(values, ranks.stop).indices
    else:
        chosen = torch.argsort(values, descending=ranks.descending)[ranks.start : ranks.stop]
    mask = np.zeros(len(values), bool)
    mask[chosen.numpy()] = True
    return BitMask.of(mask)
