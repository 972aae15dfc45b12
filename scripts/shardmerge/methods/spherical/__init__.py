"""The methods that interpolate on a sphere, and Model Stock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.methods.program import TYPES
from shardmerge.methods.registry import (
    Group,
    Inputs,
    Parameter,
    Request,
    Workspace,
    merge_method,
)

if TYPE_CHECKING:
    import torch

    from shardmerge.methods.passes import Passes


@merge_method(
    "slerp",
    title="SLERP",
    reference="https://en.wikipedia.org/wiki/Slerp",
    parameters=[
        Parameter(
            "t",
            float,
            description="0 gives the base model, 1 the other model.",
            examples=(0.3, 0.0, 0.001, 0.5, 1.0, 1.2),
        ),
    ],
    inputs=Inputs(base="required", minimum=2, maximum=2, if_single="copied"),
    version=3,
    examples={"": {}, "beyond": {"t": 1.7}},
    passes=True,
)
def slerp(group: Group) -> Passes:
    """Spherical interpolation from the base model to another model.

    ``sin((1 - t) * a) / sin(a) * base + sin(t * a) / sin(a) * x``, where ``a`` is the angle
    between the flattened tensors. If ``|cos a| > 0.9995``, it is ``(1 - t) * base + t * x``.
    Shoemake 1985, "Animating rotation with quaternion curves".
    """
    from shardmerge.methods.spherical import passes

    return passes.slerp(group)


@slerp.mergekit_kernel(workspace=Workspace(blocks=40.0))
def _mergekit_slerp(group: Group) -> torch.Tensor:
    from shardmerge.methods.spherical import mergekit

    return mergekit.slerp(group)


@slerp.mergekit_passes(by_torch=TYPES)
def _mergekit_slerp_passes(group: Group) -> Passes:
    from shardmerge.methods.spherical import mergekit_passes

    return mergekit_passes.slerp(group)


@merge_method(
    "nuslerp",
    title="NuSLERP",
    reference="https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md#nuslerp",
    parameters=[
        Parameter("weight", float, "model", description="Share of the model."),
        Parameter(
            "nuslerp_row_wise",
            bool,
            default=False,
            description="The vectors run along the first dimension, not the last.",
        ),
        Parameter("nuslerp_flatten", bool, default=True, description="A tensor is one vector."),
    ],
    inputs=Inputs(base="optional", minimum_models=2, maximum_models=2, if_single="copied"),
    version=3,
    examples={
        "": {},
        "rows": {"nuslerp_flatten": False, "weight": (0.2, 0.7)},
        "columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    passes=True,
)
def nuslerp(group: Group) -> Passes:
    """Spherical interpolation between two models, or between their task vectors.

    ``sin((1 - t) * a) / sin(a) * v_1 + sin(t * a) / sin(a) * v_2`` for each vector, where ``a`` is
    the angle between ``v_1`` and ``v_2``, and ``t = w_2 / (w_1 + w_2)`` (0.5 if the weights
    cancel). A vector is the whole tensor; if ``nuslerp_flatten`` is false, it is a row or column.
    With a base model the vectors are differences from it.
    """
    from shardmerge.methods.spherical import passes

    return passes.nuslerp(group)


@nuslerp.mergekit_kernel(workspace=Workspace(tensors=7.0))
def _mergekit_nuslerp(group: Group) -> torch.Tensor:
    from shardmerge.methods.spherical import mergekit

    return mergekit.nuslerp(group)


@nuslerp.mergekit_passes(by_torch=("F32",))
def _mergekit_nuslerp_passes(group: Group) -> Passes:
    from shardmerge.methods.spherical import mergekit_passes

    return mergekit_passes.nuslerp(group)


def _check_multislerp(request: Request | Group) -> None:
    weights = [w for i, w in enumerate(request.per_input["weight"]) if i != request.base]
    if request.parameters["normalize_weights"] and len(weights) > 1 and sum(weights) == 0:
        raise UserError(
            "the weights sum to 0, so they cannot be normalised",
            hint="Write `normalize_weights: false`, or weights whose sum is not 0.",
        )


@merge_method(
    "multislerp",
    title="Multi-SLERP",
    reference="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    parameters=[
        Parameter("weight", float, "model", description="Weight of the model."),
        Parameter(
            "normalize_weights",
            bool,
            default=True,
            description="Divide the weights by their sum.",
        ),
        Parameter("eps", float, default=1e-8, minimum=0.0, description="Added to norms."),
    ],
    inputs=Inputs(base="optional", minimum_models=1),
    check=_check_multislerp,
    version=2,
    examples={"": {"weight": 0.3, "eps": 1e-2}},
    passes=True,
)
def multislerp(group: Group) -> Passes:
    """Barycentric interpolation of many models' directions on a sphere.

    ``m / |m| * sum(w_i * |v_i|) * cos(eps)`` with ``m = sum(w_i * v_i / (|v_i| + eps))`` over the
    flattened tensors, or over the task vectors if there is a base model. The definition maps
    the directions to the tangent space at their mean, adds them there and maps the sum back. That
    sum is 0: ``sum(w_i * (u_i - <u_i, m'> m')) = m - <m, m'> m' = 0`` for ``m' = m / |m|``.
    A single model is returned as it is.
    """
    from shardmerge.methods.spherical import passes

    _check_multislerp(group)
    return passes.multislerp(group)


@multislerp.mergekit_kernel(workspace=Workspace(tensors=3.0, per_input=3.5))
def _mergekit_multislerp(group: Group) -> torch.Tensor:
    from shardmerge.methods.spherical import mergekit

    return mergekit.multislerp(group)


@multislerp.mergekit_passes(by_torch=("F32",))
def _mergekit_multislerp_passes(group: Group) -> Passes:
    from shardmerge.methods.spherical import mergekit_passes

    return mergekit_passes.multislerp(group)


@merge_method(
    "karcher",
    title="Karcher mean",
    reference="https://arxiv.org/abs/2603.04972",
    parameters=[
        Parameter("max_iter", int, default=10, minimum=0, description="Most iterations."),
        Parameter(
            "tol",
            float,
            default=1e-5,
            minimum=0.0,
            description="Norms, angles and steps below it count as 0.",
        ),
    ],
    version=3,
    examples={"": {"tol": 1e-12}},
    passes=True,
)
def karcher(group: Group) -> Passes:
    """Centre of mass of the models' directions on the sphere, with their mean norm.

    Starts from ``m = sum(u_i) / |sum(u_i)|`` and iterates ``m <- cos|g| m + sin|g| g / |g|``,
    where ``g`` is the mean of ``a_i / sin(a_i) * (u_i - cos(a_i) m)`` and ``a_i`` the angle between
    ``u_i`` and ``m``. Karcher 1977, "Riemannian center of mass and mollifier smoothing".
    """
    from shardmerge.methods.spherical import passes

    return passes.karcher(group)


@karcher.mergekit_kernel(workspace=Workspace(tensors=2.0, per_input=1.0))
def _mergekit_karcher(group: Group) -> torch.Tensor:
    from shardmerge.methods.spherical import mergekit

    return mergekit.karcher(group)


@merge_method(
    "model_stock",
    title="Model Stock",
    reference="https://arxiv.org/abs/2403.19522",
    parameters=[
        Parameter(
            "filter_wise",
            bool,
            default=False,
            description="Angles between rows instead of whole tensors.",
        ),
    ],
    inputs=Inputs(base="required", minimum=3, if_single="base"),
    examples={"": {}, "rows": {"filter_wise": True}},
    passes=True,
    version=2,
)
def model_stock(group: Group) -> Passes:
    """A point between the base and the models' mean, chosen by the angles between the models.

    ``t * mean(x_i) + (1 - t) * base`` with ``t = n * c / (1 + (n - 1) * c)``, where ``c`` is the
    mean cosine between the task vectors of the ``n`` models. Jang et al. 2024, "Model Stock: All
    we need is just a few fine-tuned models".
    """
    from shardmerge.methods.spherical import passes

    return passes.model_stock(group)


@model_stock.mergekit_kernel(workspace=Workspace(tensors=2.0, per_input=1.0))
def _mergekit_model_stock(group: Group) -> torch.Tensor:
    from shardmerge.methods.spherical import mergekit

    return mergekit.model_stock(group)


@model_stock.mergekit_passes()
def _mergekit_model_stock_passes(group: Group) -> Passes:
    from shardmerge.methods.spherical import mergekit_passes

    return mergekit_passes.model_stock(group)
