"""mergekit 0.1.5's linear, passthrough and nearswap, bit by bit."""

from __future__ import annotations

import torch

from shardmerge.methods.contract import Group


def linear(group: Group) -> torch.Tensor:
    """Add weighted inputs in float32 (or float64), divide once, round once."""
    first = group.tensors[0]
    if group.per_input["weight"] == (1.0,):
        return first + 0.0  # the same, in one step: it makes -0.0 positive and no more
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    weights = torch.tensor([group.per_input["weight"]], dtype=wide, device=first.device)
    ones = (1,) * first.dim()
    mixed = torch.zeros_like(first, dtype=wide)
    for index, tensor in enumerate(group.tensors):
        mixed.addcmul_(tensor, weights[0, index].view(ones))
    if group.parameters["normalize"]:
        mixed.div_(weights.sum(dim=1).view(ones))
    return mixed.to(first.dtype)


def passthrough(group: Group) -> torch.Tensor:
    """Return the input, or its product with the scale in its own dtype."""
    scale = group.per_input["scale"][0]
    return group.tensors[0].clone() if scale is None else group.tensors[0] * scale


def nearswap(group: Group) -> torch.Tensor:
    """Blend in the inputs' dtype, every step rounded to it."""
    base, other = group.tensors[group.base], group.tensors[group.others[0]]
    distance = (base - other).abs().clamp(min=1e-6)
    # A number over a tensor is the reciprocal's product in torch, so two roundings.
    share = (group.parameters["t"] / distance).clamp(min=0, max=1)
    return share * other + (1 - share) * base
