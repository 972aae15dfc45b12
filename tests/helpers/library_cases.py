"""Shards of one tensor, made by methods whose bits a library decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from helpers import engine_cases as cases
from helpers import kernel_cases
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec


def decomposed(
    name: str,
    folder: Path,
    code: str = "F16",
    out: str = "F32",
    tensors: Sequence[torch.Tensor] | None = None,
    shape: tuple[int, ...] = (48, 31),
    **parameters: Any,
) -> tuple[cases.Models, ShardSpec]:
    """Return fine-tunes of one base, and a shard that a method makes of them.

    Args:
        name: Of the method.
        folder: Where files are written.
        code, out: Of the types of the sources and of the result.
        tensors: Base and fine-tunes; made up if None.
        shape: Of each.
        **parameters: Shared ones that are not the ordinary ones.
    """
    group = kernel_cases.ordinary(name, shape, models=3)
    dtype = {v: k for k, v in cases.CODES.items()}[code]
    made = [tensor.to(dtype) for tensor in tensors or group.tensors]
    models = cases.Models(folder, {f"m{i}": {"w": tensor} for i, tensor in enumerate(made)})
    call = ex.Call(
        method=name,
        inputs=tuple(models.source(f"m{i}") for i in range(len(made))),
        base=0,
        parameters=tuple(sorted((group.parameters | parameters).items())),
        per_input=tuple(sorted((k, v[: len(made)]) for k, v in group.per_input.items())),
        tensor="w",
        models=group.models[: len(made)],
        output_shape=tuple(made[0].shape),
    )
    return models, models.spec({"w": (out, call)})


def random(*shape: int, seed: int) -> torch.Tensor:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measured(
    step: str,
    folder: Path,
    dtype: torch.dtype = torch.float16,
    out: str = "F32",
    shape: tuple[int, int] = (31, 24),
    **parameters: Any,
) -> tuple[cases.Models, ShardSpec]:
    """Return two layers with what was measured of them, and a shard that a step makes of these.

    Args:
        step: ``regmean_solution`` or ``fisher_average``.
        folder: Where files are written.
        dtype: Of the layers.
        out: Code of the result's type.
        shape: Of the layers.
        **parameters: Shared ones that are not the ordinary ones.
    """
    size = shape[1]
    tensors = {f"m{i}": {"w": random(*shape, seed=i).to(dtype)} for i in range(2)}
    for i in range(2):
        rows = random(2 * size + 2, size, seed=7 + i) * torch.logspace(-1, 1, size)
        gram = rows.t() @ rows / len(rows)
        found = gram if step == "regmean_solution" else random(*shape, seed=3 + i) ** 2
        tensors[f"g{i}"] = {"w": found}
    models = cases.Models(folder, tensors)
    values = {"scale": 0.9} if step == "regmean_solution" else {"floor": 1e-3}
    call = ex.Call(
        method=step,
        inputs=tuple(models.source(name) for name in tensors),
        base=None,
        parameters=tuple((values | parameters).items()),
        per_input=(("weight", (1.0, 2.0, None, None)),),
        tensor="w",
        models=tuple(tensors),
        output_shape=shape,
    )
    return models, models.spec({"w": (out, call)})
