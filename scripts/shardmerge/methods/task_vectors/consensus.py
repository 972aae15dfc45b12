"""The methods that weigh task vectors by what they change: SCE and Reinforced Agent Merging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardmerge.methods.contract import BOTH
from shardmerge.methods.registry import (
    Group,
    Inputs,
    Parameter,
    Workspace,
    merge_method,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from shardmerge.methods.passes import Passes

_BASE = Inputs(base="required")
_CHANGE = Parameter(
    "epsilon",
    float,
    default=1e-5,
    minimum=0.0,
    description="An element counts as changed above this difference.",
)


@merge_method(
    "sce",
    title="SCE",
    reference="https://arxiv.org/abs/2408.07990",
    parameters=[
        Parameter(
            "select_topk",
            float,
            default=1.0,
            minimum=0.0,
            maximum=1.0,
            clamped=BOTH,
            description="Share of the elements that vary between models that is kept.",
            examples=(0.5, 0.0, 0.1, 1.0),
        ),
        Parameter(
            "int8_mask",
            bool,
            default=False,
            idle=True,
            description="Type of mergekit's sign masks. It changes no result.",
        ),
    ],
    inputs=_BASE,
    passes=True,
)
def sce(group: Group) -> Passes:
    """Task vectors selected by variance, weighed by energy, without minority signs.

    Select: of ``v_i = x_i - base``, the elements of largest variance between models are kept.
    Calculate: ``w_i = mean(v_i ** 2)``, scaled to sum to 1; all equal if their sum is below 1e-6.
    Erase: each element's sign is that of ``sum(v_i)``, and ``base + sum(w_i * v_i) / sum(w_i)`` is
    summed over the models whose element has this sign. Wan et al. 2024, "FuseChat".
    """
    from shardmerge.methods.task_vectors import passes

    return passes.sce(group)


@sce.mergekit_kernel(workspace=Workspace(tensors=1.0, per_input=3.5))
def _mergekit_sce(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.sce(group)


@sce.mergekit_passes(chooses=lambda group: 0 < group.parameters["select_topk"] < 1)
def _mergekit_sce_passes(group: Group) -> Passes:
    from shardmerge.methods.task_vectors import mergekit_passes

    return mergekit_passes.sce(group)


@sce.keeps
def _kept_by_sce(group: Group) -> Mapping[int, np.ndarray]:
    from shardmerge.methods.task_vectors import kept

    return kept.varied(group)


@merge_method(
    "ram",
    title="Reinforced Agent Merging",
    reference="https://arxiv.org/abs/2601.13572",
    parameters=[_CHANGE],
    inputs=_BASE,
    elementwise=True,
    passes=True,
)
def ram(group: Group) -> Passes:
    """Changes that only one model made are kept; changes that several made are averaged.

    ``base + sum(v_i) / n`` over the ``n`` models where ``|v_i| = |x_i - base| > epsilon``.
    """
    from shardmerge.methods.task_vectors import passes

    return passes.reinforced(group, rescale_unique=False)


@ram.mergekit_kernel(elementwise=True, workspace=Workspace(tensors=2.0, per_input=5.5))
def _mergekit_ram(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.reinforced(group, rescale_unique=False)


@merge_method(
    "ramplus_tl",
    title="Reinforced Agent Merging Plus (tensor-local)",
    reference="https://arxiv.org/abs/2601.13572",
    parameters=[
        Parameter("r", float, default=0.1, description="How much unique changes are amplified."),
        Parameter(
            "alpha",
            float,
            default=0.2,
            minimum=0.0,
            description="Upper limit of the ratio of shared to unique changes.",
        ),
        _CHANGE,
    ],
    inputs=_BASE,
    passes=True,
)
def ramplus_tl(group: Group) -> Passes:
    """As Reinforced Agent Merging, with each model's unique changes amplified.

    The factor is ``1 + r * min(shared_i / unique_i, alpha)``. ``shared_i`` and ``unique_i`` count
    the elements of the tensor that model ``i`` changed together with others, and alone.
    """
    from shardmerge.methods.task_vectors import passes

    return passes.reinforced(group, rescale_unique=True)


@ramplus_tl.mergekit_kernel(promotes=True, workspace=Workspace(tensors=2.0, per_input=5.5))
def _mergekit_ramplus_tl(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.reinforced(group, rescale_unique=True)


@ram.mergekit_passes()
def _mergekit_ram_passes(group: Group) -> Passes:
    from shardmerge.methods.task_vectors import mergekit_passes

    return mergekit_passes.reinforced(group, rescale_unique=False)


@ramplus_tl.mergekit_passes()
def _mergekit_ramplus_tl_passes(group: Group) -> Passes:
    from shardmerge.methods.task_vectors import mergekit_passes

    return mergekit_passes.reinforced(group, rescale_unique=True)


@ram.keeps
@ramplus_tl.keeps
def _kept_by_ram(group: Group) -> Mapping[int, np.ndarray]:
    from shardmerge.methods.task_vectors import kept

    return kept.changed(group)
