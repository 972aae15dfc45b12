"""The float32 kernels that weigh and add task vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.blocks import spans, totals
from shardmerge.methods.task_vectors.keep import Keep, ReadDelta, top

#: Norms and weights below these are not divided by.
_SMALLEST_NORM = 1e-7
_SMALLEST_WEIGHT = 1e-8
_SMALLEST_SHARE = 1e-6


def merge_task_vectors(group: Group, keep: Keep, consensus: bool) -> torch.Tensor:
    """Add sparsified, weighted task vectors to the base.

    Args:
        group: With ``weight``, ``density``, ``normalize``, ``rescale`` and ``lambda``.
        keep: Says which elements of a task vector stay.
        consensus: Elect a sign for each element and leave out what disagrees with it.
    """
    base, weights = _flat(group, group.base), group.per_input["weight"]
    indices = group.others
    if not indices:
        return group.tensors[group.base].clone()
    deltas = {i: _delta(group, i) for i in indices}
    masks = {i: keep(group, i, deltas[i]) for i in indices} if base.numel() else {}
    factors = {
        i: weights[i] * (_rescaling(deltas[i], masks[i]) if group.parameters["rescale"] else 1.0)
        for i in masks
    }
    total = sum(weights[i] for i in indices)
    divisor = total if group.parameters["normalize"] and abs(total) >= _SMALLEST_WEIGHT else 1.0
    out = torch.empty_like(base)
    for span in spans(base.numel()):
        parts = [_masked(deltas[i], masks[i], span) * factors[i] for i in indices]
        mixed = _sum(parts, base[span])
        if consensus:
            mixed = _agreeing(parts, mixed >= 0, [weights[i] for i in indices], group.parameters)
        elif divisor != 1.0:
            mixed /= divisor
        if group.parameters["lambda"] != 1:
            mixed *= group.parameters["lambda"]
        out[span] = mixed.add_(base[span])
    return out.view_as(group.tensors[group.base])


def sce(group: Group) -> torch.Tensor:
    """Select elements by variance, calculate weights by energy, erase minority signs."""
    base, indices = _flat(group, group.base), group.others
    out = base.clone()
    if not indices or not base.numel():
        return out.view_as(group.tensors[group.base])
    deltas = [_delta(group, i) for i in indices]
    mask = _most_varied(deltas, base, group.parameters["select_topk"])

    def energies(span: slice) -> Iterator[torch.Tensor]:
        for delta in deltas:
            part = _masked(delta, mask, span).double()
            yield part.mul_(part)

    shares = [energy / base.numel() for energy in totals(energies, base.numel())]
    total = sum(shares)
    weights = [1 / len(shares) if total < _SMALLEST_SHARE else share / total for share in shares]
    for span in spans(base.numel()):
        parts = [_masked(delta, mask, span) for delta in deltas]
        positive = _sum(parts, base[span]) >= 0
        divisor, mixed = torch.zeros_like(base[span]), torch.zeros_like(base[span])
        for part, weight in zip(parts, weights, strict=True):
            agrees = _agrees(part, positive)
            divisor += agrees.to(divisor) * weight
            mixed += torch.where(agrees, part, 0) * weight
        out[span] += mixed.div_(divisor.clamp_(min=_SMALLEST_SHARE))
    return out.view_as(group.tensors[group.base])


def reinforced(group: Group, rescale_unique: bool) -> torch.Tensor:
    """Keep what one model changed, average what several changed.

    Args:
        group: With ``epsilon``, and for the rescaling ``r`` and ``alpha``.
        rescale_unique: Amplify what one model alone changed by how much of its change is shared.
    """
    base, indices = _flat(group, group.base), group.others
    deltas, epsilon = [_delta(group, i) for i in indices], group.parameters["epsilon"]
    factors = [1.0] * len(indices)
    if rescale_unique and indices:
        factors = _unique_factors(deltas, base, group.parameters)
    out = base.clone()
    for span in spans(base.numel()) if indices else ():
        parts = [delta(span) for delta in deltas]
        changed = [part.abs() > epsilon for part in parts]
        count = sum(mask.to(base.dtype) for mask in changed)
        mixed = torch.zeros_like(base[span])
        for part, mask, factor in zip(parts, changed, factors, strict=True):
            scaled = part if factor == 1 else torch.where(count == 1, part * factor, part)
            mixed += torch.where(mask, scaled, 0)
        out[span] += mixed.div_(count.clamp_(min=1))
    return out.view_as(group.tensors[group.base])


def _unique_factors(deltas: list[ReadDelta], base: torch.Tensor, parameters: dict) -> list[float]:
    """Return 1 + r * (shared / unique changes, at most alpha) for each model."""
    shared, unique = [0] * len(deltas), [0] * len(deltas)
    for span in spans(base.numel()):
        changed = [delta(span).abs() > parameters["epsilon"] for delta in deltas]
        count = sum(mask.int() for mask in changed)
        for i, mask in enumerate(changed):
            shared[i] += int((mask & (count > 1)).sum())
            unique[i] += int((mask & (count == 1)).sum())
    ratios = [s / max(u, parameters["epsilon"]) for s, u in zip(shared, unique, strict=True)]
    return [1 + parameters["r"] * min(ratio, parameters["alpha"]) for ratio in ratios]


def _most_varied(deltas: list[ReadDelta], base: torch.Tensor, share: float) -> torch.Tensor | None:
    """Return which elements have the largest variances, a share of those that vary at all."""
    if share >= 1:
        return None

    def variances(span: slice) -> torch.Tensor:
        parts = [delta(span).double() for delta in deltas]
        mean = _sum(parts, parts[0]).div_(len(parts))
        return _sum([(part - mean).square_() for part in parts], mean).div_(len(parts)).to(base)

    varied = sum(int(torch.count_nonzero(variances(span))) for span in spans(base.numel()))
    return top(variances, base, int(varied * share) if share > 0 else 0)


def _rescaling(delta: ReadDelta, mask: torch.Tensor | None) -> float:
    """Return the factor that gives a masked task vector the L1 norm of the whole one."""
    if mask is None:
        return 1.0

    def norms(span: slice) -> Iterator[torch.Tensor]:
        whole = delta(span).abs().double()
        yield whole * mask[span]
        yield whole

    after, before = totals(norms, mask.numel())
    return before / after if min(before, after) >= _SMALLEST_NORM else 1.0


def _agreeing(
    parts: list[torch.Tensor], positive: torch.Tensor, weights: list[float], parameters: dict
) -> torch.Tensor:
    """Return the sum, or the weighted mean, of the parts that have the elected sign."""
    mixed, divisor = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        agrees = _agrees(part, positive)
        mixed += torch.where(agrees, part, 0)
        divisor += agrees.to(divisor) * weight
    if parameters["normalize"]:
        mixed /= torch.where(divisor == 0, 1, divisor)
    return mixed


def _agrees(part: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    return torch.where(positive, part > 0, part < 0)


def _sum(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return a sum in the order of the parts; zeros if there are none."""
    result = torch.zeros_like(like)
    for part in parts:
        result += part
    return result


def _masked(delta: ReadDelta, mask: torch.Tensor | None, span: slice) -> torch.Tensor:
    part = delta(span)
    return part if mask is None else torch.where(mask[span], part, 0)


def _flat(group: Group, index: int) -> torch.Tensor:
    return group.tensors[index].reshape(-1)


def _delta(group: Group, index: int) -> ReadDelta:
    model, base = _flat(group, index), _flat(group, group.base)
    return lambda span: model[span] - base[span]
