"""The float32 kernels that choose or blend element by element."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from shardmerge.methods.contract import BLOCK, Group
from shardmerge.methods.kernels.blocks import row_sums, spans, tiles
from shardmerge.methods.kernels.functions import exp_, log_
from shardmerge.methods.kernels.selection import key_values, order_statistics, sort_keys

_SMALLEST_PROBABILITY = 1e-8
#: The smallest normal number of float64.
_SMALLEST_RATIO = 2.0**-1022


def arcee_fusion(group: Group) -> torch.Tensor:
    """Take the elements of the other model that matter most, the rest from the base."""
    base, other = (group.tensors[i].reshape(-1) for i in (group.base, *group.others))
    if not base.numel():
        return group.tensors[group.base].clone()
    columns = group.tensors[0].shape[-1] if group.tensors[0].dim() else 1
    shape = (base.numel() // columns, columns)
    divergence = _divergence(other.view(shape), base.view(shape))

    def importance() -> Iterator[tuple[slice, torch.Tensor]]:
        for row, column in tiles(*shape):
            difference = other.view(shape)[row, column] - base.view(shape)[row, column]
            block = difference.abs_().mul_(divergence[row, None]).view(-1)
            start = row.start * columns + column.start
            yield slice(start, start + block.numel()), block

    last = base.numel() - 1
    found = order_statistics(
        lambda: (sort_keys(block) for _, block in importance()),
        base.dtype,
        [int(quantile * last) for quantile in (0.25, 0.5, 0.75)],
    )
    lower, median, upper = key_values([key for key, _ in found], base.dtype)
    threshold = median + 1.5 * (upper - lower)
    out = torch.empty_like(base)
    for span, block in importance():
        out[span] = torch.where(block >= threshold, other[span], base[span])
    return out.view_as(group.tensors[group.base])


def _divergence(other: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergences of the rows' softmaxes, [rows] in their dtype."""
    rows, columns = base.shape
    result = torch.empty(rows, dtype=base.dtype)
    for row in spans(rows, max(1, BLOCK // columns)):
        result[row] = _row_divergence(other[row], base[row])
    return result.to(base.device)


def _row_divergence(other: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    greatest = [_row_maxima(matrix) for matrix in (other, base)]

    def made(row: slice, column: slice) -> list[torch.Tensor]:
        return [
            exp_(matrix[row, column].cpu().double().sub(peak[row, None]))
            for matrix, peak in zip((other, base), greatest, strict=True)
        ]

    whole = slice(None), slice(None)
    kept = made(*whole) if base.numel() <= BLOCK else None  # else one row, in several tiles

    def copies(row: slice, column: slice) -> list[torch.Tensor]:
        return [part.clone() for part in kept] if kept else made(row, column)

    sums = row_sums(copies, *base.shape)

    def terms(row: slice, column: slice) -> Iterator[torch.Tensor]:
        p, q = (
            part.div_(total[row, None]).add_(_SMALLEST_PROBABILITY)
            for part, total in zip(kept or made(row, column), sums, strict=True)
        )
        yield log_(torch.div(p, q, out=q)).mul_(p)

    return row_sums(terms, *base.shape)[0].clamp_(min=0)


def _row_maxima(matrix: torch.Tensor) -> torch.Tensor:
    parts = [matrix[:, column].amax(dim=1) for column in spans(matrix.shape[1])]
    return torch.stack(parts).amax(dim=0).cpu().double()


def geometric_task_arithmetic(group: Group) -> torch.Tensor:
    """Multiply the base by the models' ratios to it; add where a ratio makes no sense."""
    offset = group.parameters["offset"]
    flat = [tensor.reshape(-1) for tensor in group.tensors]
    base = flat[group.base].cpu().double() + offset
    weights, indices = group.per_input["weight"], group.others
    total = sum(weights[i] for i in indices)
    factor = group.parameters["lambda"]
    if group.parameters["normalize"]:
        factor /= total if abs(total) >= 1e-8 else 1.0
    product, additive, sensible = base.clone(), base.clone(), base != 0
    logarithm = None
    for i in indices:
        exponent = weights[i] * factor
        if exponent == 0:
            continue
        model = flat[i].cpu().double() + offset
        ratio = model / base
        sensible &= (ratio >= _SMALLEST_RATIO) & ratio.isfinite()
        additive += model.sub_(base).mul_(exponent)
        if exponent == 1:
            product *= ratio
            continue
        term = log_(ratio).mul_(exponent)
        logarithm = term if logarithm is None else logarithm.add_(term)
    if logarithm is not None:
        product *= exp_(logarithm)
    result = torch.where(sensible, product, additive).sub_(offset)
    return result.to(flat[group.base]).view_as(group.tensors[group.base])
