"""Which elements of a task vector are kept: by magnitude, by chance, or by both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.kernels import rng
from shardmerge.methods.kernels.blocks import spans
from shardmerge.methods.kernels.selection import RankBand, sort_keys

#: Returns a block of a task vector, [elements], for a slice of the flattened tensor.
ReadDelta = Callable[[slice], torch.Tensor]
#: Returns which elements of an input's task vector are kept, bool [elements]; None means all.
Keep = Callable[[Group, int, ReadDelta], torch.Tensor | None]


def stream(group: Group, index: int | None) -> rng.Key:
    """Return the key of the random numbers for one input of a group, or for all (None)."""
    values = group.parameters
    model = "" if index is None else group.models[index] if group.models else str(index)
    return rng.stream_key(int(values.get("seed", 0)), values.get("stage", ""), group.name, model)


def kept_magnitudes(count: int, density: float) -> tuple[int, int]:
    """Return the descending ranks of magnitude that TIES keeps, as (start, stop)."""
    return 0, max(1, int(density * count)) if density > 0 else 0


def kept_between(count: int, density: float, gamma: float) -> tuple[int, int]:
    """Return the ascending ranks of magnitude that Model Breadcrumbs keeps, as (start, stop)."""
    kept = int(density * count)
    start = max(0, count - kept - int(gamma * count))
    return start, start + kept


def magnitude(group: Group, index: int, delta: ReadDelta) -> torch.Tensor | None:
    """Keep the ``density`` largest magnitudes."""
    count, density = group.tensors[index].numel(), group.per_input["density"][index]
    if density >= 1:
        return None
    return _band(delta, group.tensors[index], kept_magnitudes(count, density), descending=True)


def between(group: Group, index: int, delta: ReadDelta) -> torch.Tensor | None:
    """Keep ``density`` of the magnitudes, without the ``gamma`` largest and the smallest."""
    count, density = group.tensors[index].numel(), group.per_input["density"][index]
    if density >= 1:
        return None
    ranks = kept_between(count, density, group.per_input["gamma"][index])
    return _band(delta, group.tensors[index], ranks, descending=False)


def chance(group: Group, index: int, delta: ReadDelta) -> torch.Tensor | None:
    """Keep each element with probability ``density``."""
    tensor, density = group.tensors[index], group.per_input["density"][index]
    if density >= 1:
        return None
    key, mask = stream(group, index), _nothing(tensor)
    for span in spans(tensor.numel()):
        draws = rng.uniform(key, span.start, span.stop - span.start, tensor.device)
        mask[span] = draws < density
    return mask


def ranked_chance(group: Group, index: int, delta: ReadDelta) -> torch.Tensor | None:
    """Keep each element with a probability that grows with its rank within its row.

    A row is what the second dimension counts; a tensor of one dimension is one row. The
    probability goes from ``density - epsilon`` for the smallest to ``density + epsilon``.
    """
    tensor, density = group.tensors[index], group.per_input["density"][index]
    epsilon = group.per_input["epsilon"][index]
    if density >= 1:
        return None
    key, mask = stream(group, index), _nothing(tensor)
    if density <= 0:
        return mask
    length = tensor.shape[1] if tensor.dim() > 1 else tensor.numel()
    inner = math.prod(tensor.shape[2:])
    for span in _row_spans(tensor.numel(), length * inner):
        magnitudes = delta(span).abs().view(-1, length, inner)
        order = torch.sort(magnitudes, dim=1, stable=True).indices
        ascending = torch.arange(length, device=tensor.device).view(1, -1, 1)
        ranks = torch.empty_like(order).scatter_(1, order, ascending.expand_as(order))
        del magnitudes, order
        # A row of one element has the mean probability.
        relative = ranks.double().view(-1).div_(length - 1) if length > 1 else 0.5
        del ranks
        draws = rng.uniform(key, span.start, span.stop - span.start, tensor.device)
        mask[span] = draws < (density - epsilon) + relative * (2 * epsilon)
    return mask


def top(values: ReadDelta, tensor: torch.Tensor, kept: int) -> torch.Tensor:
    """Return which elements are the ``kept`` largest of values that are not negative.

    Args:
        values: Returns a block of them.
        tensor: One of their number and dtype.
        kept: How many; of equal ones the first.
    """
    return _band(values, tensor, (0, kept), descending=True)


def _band(
    values: ReadDelta, like: torch.Tensor, ranks: Sequence[int], descending: bool
) -> torch.Tensor:
    def keys() -> Iterator[torch.Tensor]:
        for span in spans(like.numel()):
            yield sort_keys(values(span).abs(), descending)

    mask = _nothing(like)
    start, stop = ranks[0], min(ranks[1], like.numel())
    if start < stop:
        band = RankBand.find(keys, like.dtype, start, stop)
        for span, chosen in zip(spans(like.numel()), band.masks(keys), strict=True):
            mask[span] = chosen
    return mask


def _nothing(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)


def _row_spans(count: int, row: int) -> Iterator[slice]:
    """Yield spans of whole rows of about a block each."""
    return spans(count, row * max(1, next(spans(count)).stop // row)) if count else iter(())
