"""The float32 kernels of methods that choose by masks which elements matter to which models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.blocks import spans
from shardmerge.methods.kernels.selection import RankBand, sort_keys

#: Returns a block of values, [elements], for a slice of the flattened tensor.
ReadBlock = Callable[[slice], torch.Tensor]


def consensus_sum(group: Group) -> torch.Tensor:
    """Add weighted task vectors where an element matters to enough models."""
    base, weights = group.tensors[group.base], group.per_input["weight"]
    parts = [(group.tensors[i] - base) * weights[i] for i in group.others]
    return _in_consensus(group, base, parts, added(parts, base))


def consensus_ties(group: Group) -> torch.Tensor:
    """Make TIES' task vector, and keep of it what matters to enough models."""
    base, weights = group.tensors[group.base].reshape(-1), group.per_input["weight"]
    deltas = {i: delta_of(group, i) for i in group.others}
    masks = {i: largest(deltas[i], base, group.per_input["density"][i]) for i in deltas}
    out = torch.empty_like(base)
    for span in spans(base.numel()):
        parts = [deltas[i](span) * weights[i] for i in deltas]
        pairs = zip(masks.values(), parts, strict=True)
        trimmed = [torch.where(mask[span], part, 0) for mask, part in pairs]
        merged = _elected(group, trimmed, base[span])
        out[span] = _in_consensus(group, base[span], parts, merged)
    return out.view_as(group.tensors[group.base])


def localize_and_stitch(group: Group) -> torch.Tensor:
    """Take the mean of the task vectors' largest elements."""
    base = group.tensors[group.base].reshape(-1)
    deltas = {i: delta_of(group, i) for i in group.others}
    masks = {i: largest(deltas[i], base, group.per_input["density"][i]) for i in deltas}
    out = base.clone()
    for span in spans(base.numel()) if deltas else ():
        kept = added([torch.where(masks[i][span], deltas[i](span), 0) for i in deltas], base[span])
        count = added([masks[i][span].to(base) for i in deltas], base[span])
        out[span] += kept.div_(count.clamp_(min=1))
    return out.view_as(group.tensors[group.base])


def largest(values: ReadBlock, like: torch.Tensor, share: float) -> torch.Tensor:
    """Return which elements have the largest magnitudes: a share of them, but at least one.

    Args:
        values: Returns a block of them.
        like: One of their number and dtype, flat.
        share: From 0, which keeps none, to 1; of equal magnitudes the first are kept.
    """
    count = like.numel()
    mask = torch.zeros(count, dtype=torch.bool, device=like.device)
    if share <= 0 or not count:
        return mask

    def keys() -> Iterator[torch.Tensor]:
        for span in spans(count):
            yield sort_keys(values(span).abs(), descending=True)

    band = RankBand.find(keys, like.dtype, 0, max(1, int(share * count)))
    for span, chosen in zip(spans(count), band.masks(keys), strict=True):
        mask[span] = chosen
    return mask


def delta_of(group: Group, index: int) -> ReadBlock:
    """Return what reads blocks of an input's task vector."""
    model, base = (group.tensors[i].reshape(-1) for i in (index, group.base))
    return lambda span: model[span] - base[span]


def added(parts: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return a sum in the order of the parts; zeros if there are none."""
    result = torch.zeros_like(like)
    for part in parts:
        result += part
    return result


def _in_consensus(
    group: Group, base: torch.Tensor, parts: Sequence[torch.Tensor], merged: torch.Tensor
) -> torch.Tensor:
    """Return the base plus what of a merged task vector matters to enough models."""
    count = torch.zeros_like(base)
    for index, part in zip(group.others, parts, strict=True):
        others = (merged - part).abs_().mul_(group.per_input["threshold"][index])
        count += part.abs() >= others
    chosen = torch.where(count >= group.parameters["agreement"], merged, 0)
    return chosen.mul_(group.parameters["lambda"]).add_(base)


def _elected(group: Group, parts: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return the sum of what has the sign of the sum, or its weighted mean."""
    positive = added(parts, like) >= 0
    agreeing = [torch.where(positive, part > 0, part < 0) for part in parts]
    mixed = added([torch.where(a, p, 0) for a, p in zip(agreeing, parts, strict=True)], like)
    if not group.parameters["normalize"]:
        return mixed
    weights = [group.per_input["weight"][i] for i in group.others]
    shares = [a.to(like) * weight for a, weight in zip(agreeing, weights, strict=True)]
    divisor = added(shares, like)
    return mixed.div_(torch.where(divisor == 0, 1, divisor))
