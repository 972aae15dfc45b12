"""Steps of adapters that no recipe names: DoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.numerics import MERGEKIT
from shardmerge.methods.registry import Group, Workspace, step_kernel

if TYPE_CHECKING:
    import torch


@step_kernel("dora", "float32", workspace=Workspace())
def _dora(group: Group) -> torch.Tensor:
    from shardmerge.methods.kernels import adapted

    return adapted.dora(group)


@step_kernel("dora", MERGEKIT, workspace=Workspace(tensors=1.0))
def _mergekit_dora(group: Group) -> torch.Tensor:
    from shardmerge.methods.kernels import adapted

    return adapted.peft_dora(group)
