"""PCB-Merging: elements of task vectors compete, within their model and between models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from shardmerge.methods.contract import Group
from shardmerge.methods.elementary import exp
from shardmerge.methods.kernels.blocks import spans, totals
from shardmerge.methods.kernels.execute import TorchElements
from shardmerge.methods.localized.kernels import ReadBlock, added, delta_of, largest

#: Of two inputs' task vectors, or of one with itself.
_Pair = tuple[int, int]


def pcb(group: Group) -> torch.Tensor:
    """Weigh each element by its score, and add what is left of the task vectors."""
    base, weights = group.tensors[group.base].reshape(-1), group.per_input["weight"]
    deltas = {i: delta_of(group, i) for i in group.others}
    out = base.clone()
    if not deltas or not base.numel():
        return out.view_as(group.tensors[group.base])
    scores = _scores(deltas, base)
    for i, score in scores.items():
        mask = largest(score.__getitem__, base, group.per_input["density"][i])
        score.mul_(mask)
    for span in spans(base.numel()):
        divisor = added([score[span] for score in scores.values()], base[span])
        mixed = added([deltas[i](span) * weights[i] * scores[i][span] for i in deltas], base[span])
        mixed /= torch.where(divisor == 0, 1, divisor)
        out[span] += mixed.mul_(group.parameters["lambda"])
    return out.view_as(group.tensors[group.base])


def _scores(deltas: dict[int, ReadBlock], base: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return each input's scores, in the base's dtype, scaled to a mean of about 1."""
    pairs = list(itertools.combinations_with_replacement(deltas, 2))
    norms = {pair: _norm(deltas, pair, base.numel()) for pair in pairs}
    within = {i: _softmax(norms[i, i], len(deltas), base.numel()) for i in deltas}
    between = {pair: _softmax(norms[pair], 1, base.numel()) for pair in pairs}
    scores = {i: torch.empty_like(base) for i in deltas}
    for span in spans(base.numel()):
        made = {pair: between[pair](span) for pair in pairs}
        for i, score in scores.items():
            others = [made[min(i, j), max(i, j)] for j in deltas]
            score[span] = added(others, others[0]).mul_(within[i](span)).to(base)
    return scores


def _norm(deltas: dict[int, ReadBlock], pair: _Pair, count: int) -> ReadBlock:
    """Return what reads the products of two task vectors, brought to 0 to 1, in float64."""

    def product(span: slice) -> torch.Tensor:
        return deltas[pair[0]](span).double() * deltas[pair[1]](span).double()

    ends = torch.stack([torch.stack(product(span).aminmax()) for span in spans(count)])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    width = torch.where(high > low, high - low, 1)
    return lambda span: product(span).sub_(low).div_(width)


def _softmax(values: ReadBlock, factor: int, count: int) -> ReadBlock:
    """Return what reads the softmax of values times a factor, times the number of elements."""

    def powers(span: slice) -> torch.Tensor:
        scaled = values(span).mul_(factor)
        return exp(TorchElements([scaled], scaled.shape, span.start), scaled)

    def blocks(span: slice) -> Iterator[torch.Tensor]:
        yield powers(span)

    (total,) = totals(blocks, count)
    return lambda span: powers(span).mul_(count / total)
