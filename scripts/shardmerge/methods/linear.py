"""The methods whose result is a sum: linear, task_arithmetic, passthrough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.methods.registry import (
    Group,
    Inputs,
    LinearForm,
    Parameter,
    Request,
    Workspace,
    merge_method,
    mergekit_kernel,
)

if TYPE_CHECKING:
    import torch

_UNUSED = "Accepted and not used, as in mergekit."


@merge_method(
    "linear",
    title="Linear (model soup)",
    reference="https://arxiv.org/abs/2203.05482",
    parameters=[
        Parameter("weight", float, "input", description="Weight of the model."),
        Parameter("normalize", bool, default=True, description="Divide by the sum of the weights."),
    ],
    linear=True,
)
def linear(request: Request) -> LinearForm:
    """Weighted mean of the models.

    ``sum(w_i * x_i) / sum(w_i)``, or without the division where ``normalize`` is false.
    Wortsman et al. 2022, "Model soups".
    """
    weights = request.per_input["weight"]
    total = 1.0
    if request.parameters["normalize"]:
        total = sum(weights)
        if total == 0:
            raise UserError(
                "the weights sum to 0, so they cannot be normalised",
                hint="Write `normalize: false`, or weights whose sum is not 0.",
            )
    return LinearForm(direct={i: w / total for i, w in enumerate(weights)})


@merge_method(
    "task_arithmetic",
    title="Task arithmetic",
    reference="https://arxiv.org/abs/2212.04089",
    parameters=[
        Parameter("weight", float, "model", description="Weight of the model's task vector."),
        Parameter(
            "normalize", bool, default=False, description="Divide by the sum of the weights."
        ),
        Parameter("lambda", float, default=1.0, description="Factor of the summed task vectors."),
        Parameter("density", float, "model", default=1.0, unused=True, description=_UNUSED),
        Parameter("rescale", bool, default=False, unused=True, description=_UNUSED),
        Parameter("int8_mask", bool, default=False, description=_UNUSED),
    ],
    inputs=Inputs(base="required"),
    linear=True,
)
def task_arithmetic(request: Request) -> LinearForm:
    """Base model plus the weighted sum of the models' task vectors.

    ``base + lambda * sum(w_i * (x_i - base))``, divided by ``sum(w_i)`` where ``normalize`` is
    true. Ilharco et al. 2022, "Editing Models with Task Arithmetic".
    """
    weights = {i: w for i, w in enumerate(request.per_input["weight"]) if i != request.base}
    factor = request.parameters["lambda"]
    if request.parameters["normalize"]:
        total = sum(weights.values())
        factor /= total if abs(total) >= 1e-8 else 1.0
    return LinearForm(
        direct={request.base: 1.0}, deltas={i: w * factor for i, w in weights.items()}
    )


@merge_method(
    "passthrough",
    title="Passthrough",
    reference="https://github.com/arcee-ai/mergekit#passthrough",
    parameters=[
        Parameter("scale", float, "input", default=None, description="Factor of the tensor."),
    ],
    inputs=Inputs(maximum=1),
    linear=True,
)
def passthrough(request: Request) -> LinearForm:
    """The one input, scaled if asked: ``scale * x``."""
    (scale,) = request.per_input["scale"]
    return LinearForm(direct={0: 1.0 if scale is None else scale})


@mergekit_kernel("linear", elementwise=True, workspace=Workspace(tensors=1.0))
def _mergekit_linear(group: Group) -> torch.Tensor:
    from shardmerge.methods.mergekit import elementwise

    return elementwise.linear(group)


@mergekit_kernel(
    "task_arithmetic", elementwise=True, workspace=Workspace(tensors=2.0, per_input=1.0)
)
def _mergekit_task_arithmetic(group: Group) -> torch.Tensor:
    from shardmerge.methods.mergekit import task_vectors

    return task_vectors.merge_task_vectors(group, None, consensus=False)


@mergekit_kernel("passthrough", elementwise=True, workspace=Workspace())
def _mergekit_passthrough(group: Group) -> torch.Tensor:
    from shardmerge.methods.mergekit import elementwise

    return elementwise.passthrough(group)
