"""mergekit 0.1.5's methods that choose or blend element by element, bit by bit."""

from __future__ import annotations

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.task_vectors.mergekit import generator

#: Elements that tell of a larger tensor's quantiles.
SAMPLE = 1_000_000


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
    importance = (other - base).abs() * divergences(other, base)
    sample = importance.reshape(-1)
    if sample.numel() > SAMPLE:
        sample = sample[sampled_places(group, sample.numel())]
    found = torch.sort(sample).values[quartiles(sample.numel())]
    mask = (importance >= threshold(*found)).float()
    return base + (other - base) * mask


def divergences(other: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return the divergences of the softmaxes of rows, which keep a dimension of 1."""
    p, q = (torch.nn.functional.softmax(x, dim=-1) + 1e-8 for x in (other, base))
    return torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)


def sampled_places(group: Group, count: int) -> torch.Tensor:
    """Return the indices of the elements that tell of quantiles; of a large tensor they repeat."""
    if count <= SAMPLE:
        return torch.arange(count)
    return torch.randint(count, (SAMPLE,), generator=generator(group))


def quartiles(count: int) -> torch.Tensor:
    """Return the ranks of quartiles among so many elements."""
    return (torch.tensor([0.25, 0.5, 0.75]) * (count - 1)).long()


def threshold(lower: torch.Tensor, median: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Return from which importance on an element is taken, in the type of the quartiles."""
    return median + 1.5 * (upper - lower)
