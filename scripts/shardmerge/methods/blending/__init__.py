"""The methods that choose or blend element by element: nearswap, Arcee Fusion, geometric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.methods.program import TYPES
from shardmerge.methods.registry import (
    Group,
    Inputs,
    Parameter,
    Workspace,
    merge_method,
)

if TYPE_CHECKING:
    import torch

    from shardmerge.methods.passes import Passes


@merge_method(
    "nearswap",
    title="NearSwap",
    reference="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    parameters=[
        Parameter(
            "t",
            float,
            description="Elements that differ by less are swapped as a whole.",
            examples=(0.3, 0.0, 0.001, 0.5, 1.0, 1.2),
        ),
    ],
    inputs=Inputs(base="required", minimum=2, maximum=2, if_single="base"),
    elementwise=True,
    passes=True,
)
def nearswap(group: Group) -> Passes:
    """Elements of another model if they are near the base model's; a blend if not.

    ``s * x + (1 - s) * base`` with ``s = min(1, t / max(|base - x|, 1e-6))``.
    """
    from shardmerge.methods.blending import passes

    return passes.nearswap(group)


@nearswap.mergekit_kernel(elementwise=True, workspace=Workspace(tensors=4.0))
def _mergekit_nearswap(group: Group) -> torch.Tensor:
    from shardmerge.methods.blending import mergekit

    return mergekit.nearswap(group)


@nearswap.mergekit_passes()
def _mergekit_nearswap_passes(group: Group) -> Passes:
    from shardmerge.methods.blending import passes

    return passes.mergekit_nearswap(group)


@merge_method(
    "arcee_fusion",
    title="Arcee Fusion",
    reference="https://arcee.ai",
    inputs=Inputs(base="required", minimum=2, maximum=2, if_single="copied"),
    version=4,
    passes=True,
    workspace=Workspace(blocks=40.0),
)
def arcee_fusion(group: Group) -> Passes:
    """The other model's most important elements, the rest from the base model.

    An element's importance is ``|x - base|`` times the Kullback-Leibler divergence of the
    softmaxes of its rows. Elements with at least ``median + 1.5 * (Q3 - Q1)`` are taken. The
    quartiles are exact at any size (mergekit samples a million elements of a larger tensor). No
    probability is raised (mergekit adds 1e-8 to each): a number that is more than 80 below the
    greatest of its row counts as 80 below it.
    """
    from shardmerge.methods.blending import passes

    return passes.arcee_fusion(group)


@arcee_fusion.mergekit_kernel(promotes=True, workspace=Workspace(tensors=7.0, blocks=32.0))
def _mergekit_arcee_fusion(group: Group) -> torch.Tensor:
    from shardmerge.methods.blending import mergekit

    return mergekit.arcee_fusion(group)


@arcee_fusion.mergekit_passes(by_torch=TYPES)
def _mergekit_arcee_fusion_passes(group: Group) -> Passes:
    from shardmerge.methods.blending import mergekit_passes

    return mergekit_passes.arcee_fusion(group)


@merge_method(
    "geometric_task_arithmetic",
    title="Geometric task arithmetic",
    reference="https://arxiv.org/abs/2212.04089",
    parameters=[
        Parameter("weight", float, "model", description="Exponent of the model's ratio."),
        Parameter(
            "normalize", bool, default=False, description="Divide by the sum of the weights."
        ),
        Parameter(
            "lambda",
            float,
            default=1.0,
            description="Factor of all exponents.",
            examples=(1.0, 0.5, 1.3),
        ),
        Parameter(
            "offset",
            float,
            default=0.0,
            description="Added to every tensor for the ratios and taken off again: 1 for the norms "
            "of Gemma, which scale by `1 + w`.",
        ),
    ],
    inputs=Inputs(base="required"),
    elementwise=True,
    passes=True,
    workspace=Workspace(tensors=24.0),
    version=2,
    examples={
        "": {"weight": (None, 0.37, -0.6, 1.0)},
        "offset": {"weight": 0.8, "offset": 1.0, "normalize": True},
    },
)
def geometric_task_arithmetic(group: Group) -> Passes:
    """Task arithmetic by ratios, for tensors that multiply, such as the scales of norms.

    ``base * product((x_i / base) ** (lambda * w_i))``: two fine-tunes of one base with weight 1
    give ``x_1 * x_2 / base``. It is task arithmetic on the logarithms. If a model of weight 1 was
    rescaled, the result keeps the factors. An element has no such ratio if its base is 0, or if a
    model of weight other than 0 has another sign than the base, or is 0, infinite or NaN there. It
    gets task arithmetic's ``base + sum(lambda * w_i * (x_i - base))``.
    """
    from shardmerge.methods.blending import passes

    return passes.geometric_task_arithmetic(group)
