"""mergekit 0.1.5's methods that choose or blend element by element, bit by bit."""

from __future__ import annotations

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.task_vectors.mergekit import generator

_FUSION_SAMPLE = 1_000_000


def nearswap(group: Group) -> torch.Tensor:
    """Blend in the inputs' dtype, every step rounded to it."""
    base, other = group.tensors[group.base], group.tensors[group.others[0]]
    distance = (base - other).abs().clamp(min=1e-6)
    # A number over a tensor is the reciprocal's product in torch, so two roundings.
    share = (group.parameters["t"] / distance).clamp(min=0, max=1)
    return share * other + (1 - share) * base


def arcee_fusion(group: Group) -> torch.Tensor:
    """Choose elements by importance over a quantile; the choice's float32 promotes the result.

    Above a million elements mergekit estimates the quantiles from a random sample, here drawn
    from the tensor's own generator.
    """
    base, other = group.tensors[group.base], group.tensors[group.others[0]]
    p, q = (torch.nn.functional.softmax(x, dim=-1) + 1e-8 for x in (other, base))
    divergence = torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)
    importance = (other - base).abs() * divergence
    del p, q
    sample = importance.reshape(-1)
    if sample.numel() > _FUSION_SAMPLE:
        sample = sample[
            torch.randint(sample.numel(), (_FUSION_SAMPLE,), generator=generator(group))
        ]
    ranks = torch.tensor([0.25, 0.5, 0.75]) * (sample.numel() - 1)
    lower, median, upper = torch.sort(sample).values[ranks.long()]
    mask = (importance >= median + 1.5 * (upper - lower)).float()
    return base + (other - base) * mask
