"""What the installed mergekit makes of a group of tensors, through its public method objects."""

from __future__ import annotations

import pytest
import torch

from shardmerge.base.errors import UserError
from shardmerge.base.numerics import MERGEKIT
from shardmerge.methods.registry import Group, kernel_of, method
from shardmerge.methods.task_vectors.keep import generator_seed

mergekit = pytest.importorskip("mergekit.merge_methods")
base_types = pytest.importorskip("mergekit.merge_methods.base")

NUMERICS = MERGEKIT


def mergekit_result(name: str, group: Group, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return what mergekit makes of a group, its generator seeded as ours is for the tensor."""
    parameters = {k: v for k, v in group.parameters.items() if k not in ("seed", "stage")}
    for parameter in method(name).parameters:
        if parameter.scope == "shared":
            continue
        values = dict(zip(group.models, group.per_input[parameter.name], strict=True))
        if parameter.scope == "model" and group.base is not None:
            del values[group.models[group.base]]
        parameters[parameter.name] = values
    tensors = base_types.TensorGroup.from_tensors(
        list(group.tensors), ids=group.models, base_index=group.base, name=group.name
    )
    torch.manual_seed(generator_seed(group))
    (result,) = mergekit.get(name)((tensors,), parameters=parameters, dtype=dtype)
    return result


def both(name: str, group: Group) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return ours and mergekit's result, None for what is refused."""
    kernel, _ = kernel_of(name, NUMERICS)
    try:
        theirs = mergekit_result(name, group)
    except (ValueError, RuntimeError):
        theirs = None
    try:
        ours = kernel(group)
    except (UserError, RuntimeError):
        ours = None
    return ours, theirs
