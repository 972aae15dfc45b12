"""Merges of adapters in the space that their updates share: KnOTS.

Stoica et al. 2024, "Model merging with SVD to tie the Knots", https://arxiv.org/abs/2410.19735. Of
the updates side by side, ``[D_1 ... D_n] = U S [V_1 ... V_n]``, a method merges the ``V_i`` and not
the ``D_i``. The result is ``U S V``, which is of low rank as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.factorization import AlignedMerge, FactorModule
from shardmerge.base.numerics import FLOAT32
from shardmerge.engine.decompose import Pair
from shardmerge.methods.registry import kernel_of


def aligned(pairs: Sequence[Pair], module: FactorModule) -> Pair:
    """Return factors of a merge of products of factors.

    Args:
        pairs: Factors of all inputs, in their order.
        module: Says which belong to which input, and how they are merged.
    """
    left, upper = torch.linalg.qr(torch.cat([b for b, _ in pairs], dim=1))
    blocks = _blocks(pairs, upper, module.merge)
    turn, values, shared = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
    noise = values[:1] * max(shared.shape) * torch.finfo(values.dtype).eps
    kept = values > noise
    parts = shared[kept].split(pairs[0][1].shape[1], dim=1)
    merged = _merged([part.contiguous() for part in parts], module)
    return left @ (turn * values)[:, kept], merged


def _blocks(pairs: Sequence[Pair], upper: torch.Tensor, merge: AlignedMerge) -> list[torch.Tensor]:
    """Return each input's update in the basis that all share, without the base model's."""
    blocks, pair, column = [], 0, 0
    for i, count in enumerate(merge.products):
        if i == merge.base:
            continue
        block = upper.new_zeros(len(upper), pairs[0][1].shape[1])
        for _, a in pairs[pair : pair + count]:
            block += upper[:, column : column + len(a)] @ a
            column += len(a)
        pair += count
        blocks.append(block)
    return blocks


def _merged(parts: list[torch.Tensor], module: FactorModule) -> torch.Tensor:
    merge, shape = module.merge, tuple(parts[0].shape)
    tensors = list(parts)
    tensors.insert(merge.base, torch.zeros_like(parts[0]))
    call = ex.Call(
        method=merge.method,
        inputs=(ex.Zero(shape),) * len(tensors),
        base=merge.base,
        parameters=merge.parameters,
        per_input=merge.per_input,
        tensor=module.tensor,
        models=merge.models,
        output_shape=shape,
    )
    if not parts[0].numel():
        return parts[0]
    kernel, elementwise = kernel_of(merge.method, FLOAT32)
    given = [tensor.flatten() for tensor in tensors] if elementwise else tensors
    return kernel(group_of(call, given)).reshape(shape)
