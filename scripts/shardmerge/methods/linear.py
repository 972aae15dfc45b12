"""The methods whose result is a sum: linear, task_arithmetic, passthrough.

mergekit 0.1.5's are here as kernels and as steps, each rounded where the kernel rounds: the same
bits, in one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.base.numerics import sum_in_order
from shardmerge.methods.program import (
    Unsupported,
    Writer,
    common_dtype,
    few,
    in_order,
    rounded,
    sum_of,
    torch_fuses,
)
from shardmerge.methods.registry import (
    Group,
    Inputs,
    LinearForm,
    Parameter,
    Request,
    Workspace,
    merge_method,
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

    ``sum(w_i * x_i) / sum(w_i)``, or without the division if ``normalize`` is false.
    Wortsman et al. 2022, "Model soups".
    """
    weights = request.per_input["weight"]
    total = 1.0
    if request.parameters["normalize"]:
        total = sum_in_order(weights)
        if total == 0:
            raise UserError(
                "the weights sum to 0, so they cannot be normalised",
                hint="Write `normalize: false`, or weights whose sum is not 0.",
            )
    return LinearForm(direct={i: w / total for i, w in enumerate(weights)})


@linear.mergekit_kernel(elementwise=True, workspace=Workspace(tensors=1.0), skips_zeros=True)
def _mergekit_linear(group: Group) -> torch.Tensor:
    """Add weighted inputs in float32 (or float64), divide once, round once."""
    import torch

    first = group.tensors[0]
    if group.per_input["weight"] == (1.0,):
        return first + 0.0  # the same, in one step: it makes -0.0 positive and no more
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    weights = torch.tensor([group.per_input["weight"]], dtype=wide, device=first.device)
    ones = (1,) * first.dim()
    mixed = torch.zeros_like(first, dtype=wide)
    for index, tensor in enumerate(group.tensors):
        mixed.addcmul_(tensor, weights[0, index].view(ones))
    if group.parameters["normalize"]:
        mixed.div_(weights.sum(dim=1).view(ones))
    return mixed.to(first.dtype)


@linear.mergekit_steps
def _linear_steps(group: Group, writer: Writer) -> int:
    """Add weighted inputs in float32, divide once, round once."""
    dtype = common_dtype(group.tensors, writer)
    weights = group.per_input["weight"]
    if weights == (1.0,):
        return writer.round(in_order(writer, group.tensors), dtype)
    if not torch_fuses():
        raise Unsupported
    mixed = writer.step("zero")
    for value, weight in zip(group.tensors, weights, strict=True):
        mixed = writer.step("fma", value, writer.constant(weight), mixed)
    if group.parameters["normalize"]:
        total = sum_of(few([rounded(weight, "F32") for weight in weights]))
        mixed = writer.step("div", mixed, writer.constant(total))
    return writer.round(mixed, dtype)


@merge_method(
    "task_arithmetic",
    title="Task arithmetic",
    reference="https://arxiv.org/abs/2212.04089",
    parameters=[
        Parameter("weight", float, "model", description="Weight of the model's task vector."),
        Parameter(
            "normalize", bool, default=False, description="Divide by the sum of the weights."
        ),
        Parameter(
            "lambda",
            float,
            default=1.0,
            description="Factor of the summed task vectors.",
            examples=(1.0, 0.5, 1.3),
        ),
        Parameter(
            "density",
            float,
            "model",
            default=1.0,
            unused=True,
            description=_UNUSED,
            examples=(0.5, 0.0, 1.0),
        ),
        Parameter("rescale", bool, default=False, unused=True, description=_UNUSED),
        Parameter("int8_mask", bool, default=False, idle=True, description=_UNUSED),
    ],
    inputs=Inputs(base="required"),
    linear=True,
)
def task_arithmetic(request: Request) -> LinearForm:
    """Base model plus the weighted sum of the models' task vectors.

    ``base + lambda * sum(w_i * (x_i - base))``. If ``normalize`` is true, the sum is divided by
    ``sum(w_i)``. Ilharco et al. 2022, "Editing Models with Task Arithmetic".
    """
    weights = {i: w for i, w in enumerate(request.per_input["weight"]) if i != request.base}
    factor = request.parameters["lambda"]
    if request.parameters["normalize"]:
        total = sum_in_order(weights.values())
        factor /= total if abs(total) >= 1e-8 else 1.0
    return LinearForm(
        direct={request.base: 1.0}, deltas={i: w * factor for i, w in weights.items()}
    )


@task_arithmetic.mergekit_kernel(elementwise=True, workspace=Workspace(tensors=2.0, per_input=1.0))
def _mergekit_task_arithmetic(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, None, consensus=False)


@task_arithmetic.mergekit_steps
def _task_arithmetic_steps(group: Group, writer: Writer) -> int:
    """Add weighted task vectors to the base, every step rounded to its dtype."""
    dtype, base = common_dtype(group.tensors, writer), group.tensors[group.base]
    if not group.others:
        return base

    def step(name: str, *operands: int) -> int:
        return writer.round(writer.step(name, *operands), dtype)

    given = [group.per_input["weight"][i] for i in few(group.others)]
    weights = [rounded(weight, dtype) for weight in given]
    vectors = [step("sub", group.tensors[i], base) for i in group.others]
    if set(given) != {1.0}:
        vectors = [
            step("mul", vector, writer.constant(weight))
            for vector, weight in zip(vectors, weights, strict=True)
        ]
    mixed = writer.round(in_order(writer, vectors), dtype)
    if group.parameters["normalize"]:
        total = rounded(sum_of(weights), dtype)
        if abs(total) < rounded(1e-8, dtype):  # in float16 that is 0, and 0 divides
            total = 1.0
        mixed = step("div", mixed, writer.constant(total))
    if group.parameters["lambda"] != 1:
        mixed = step("mul", mixed, writer.constant(group.parameters["lambda"]))
    return step("add", base, mixed)


@merge_method(
    "passthrough",
    title="Passthrough",
    reference="https://github.com/arcee-ai/mergekit#passthrough",
    parameters=[
        Parameter(
            "scale",
            float,
            "input",
            default=None,
            description="Factor of the tensor.",
            examples=(None, 0.0, -1.5, 1.0, 0.1),
        ),
    ],
    inputs=Inputs(maximum=1),
    linear=True,
)
def passthrough(request: Request) -> LinearForm:
    """The only input, or ``scale * x`` if there is a ``scale``."""
    (scale,) = request.per_input["scale"]
    return LinearForm(direct={0: 1.0 if scale is None else scale})


@passthrough.mergekit_kernel(elementwise=True, workspace=Workspace())
def _mergekit_passthrough(group: Group) -> torch.Tensor:
    """Return the input, or its product with the scale in its own dtype."""
    scale = group.per_input["scale"][0]
    return group.tensors[0].clone() if scale is None else group.tensors[0] * scale


@passthrough.mergekit_steps
def _passthrough_steps(group: Group, writer: Writer) -> int:
    """Return the input, or its product with the scale, rounded."""
    dtype, (value,) = common_dtype(group.tensors, writer), group.tensors
    scale = group.per_input["scale"][0]
    if scale is None:
        return value
    return writer.round(writer.step("mul", value, writer.constant(scale)), dtype)
