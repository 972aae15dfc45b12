"""The methods that need to know whole models: what jobs measured of them is an input.

Importing registers them. ``kernels`` and ``passes`` have the steps that merge tensors with what was
measured, ``verify`` what the check of a large tensor of RegMean tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.base.numerics import FLOAT32
from shardmerge.methods.linear import linear
from shardmerge.methods.registry import (
    Group,
    Inputs,
    LinearForm,
    Measure,
    Parameter,
    Probing,
    Recorded,
    Request,
    Workspace,
    merge_method,
    step_kernel,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from shardmerge.methods.contract import Sampled, TensorReader
    from shardmerge.methods.passes import Passes


def _weight(description: str) -> Parameter:
    return Parameter(
        "weight",
        float,
        "input",
        default=1.0,
        minimum=0.0,
        description=description,
        examples=(1.0, 0.5, 2.0),
    )


_READING = (
    Parameter(
        "text",
        str,
        "input",
        measuring=True,
        description="File of text that the model reads, like what it was fine-tuned for.",
        examples=("text.txt",),
    ),
    Parameter(
        "tokens",
        int,
        "input",
        default=65536,
        minimum=1,
        measuring=True,
        description="How many tokens of the text are read at most.",
    ),
    Parameter(
        "context",
        int,
        "input",
        default=512,
        minimum=2,
        measuring=True,
        description="Tokens that are read together. What is left of the text at its end is not.",
        examples=(512, 64),
    ),
    Parameter(
        "model_dtype",
        str,
        "input",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        measuring=True,
        description="Type in which the model computes while it reads.",
    ),
)


def _mean(request: Request) -> LinearForm:
    """Return the weighted mean of all inputs."""
    return linear.linear(
        Request(request.models, request.base, {"normalize": True}, request.per_input)
    )


@merge_method(
    "regmean",
    title="RegMean",
    reference="https://arxiv.org/abs/2212.09849",
    parameters=[
        _weight("Weight of the model's Gram matrix, and of the model in a mean."),
        Parameter(
            "scale",
            float,
            default=0.9,
            minimum=0.0,
            maximum=1.0,
            description="Factor of what is not on the diagonal of a Gram matrix. With 0, each "
            "column is a weighted mean.",
            examples=(0.9, 0.5, 0.0),
        ),
        Parameter(
            "grams",
            bool,
            default=True,
            description="Whether Gram matrices are used. With a filter, `false` leaves some "
            "tensors out: they get the mean.",
            examples=(True, False),
        ),
        *_READING,
    ],
    linear=True,
    measure=Measure("grams", "regmean_solution", "grams"),
)
def regmean(request: Request) -> LinearForm:
    """The linear layers whose outputs are nearest to those of all models on their own texts.

    A job lets each model read its text. Of the inputs ``X_i`` of a linear layer it writes the Gram
    matrix ``G_i = X_i' X_i``, divided by the number of tokens (``'`` transposes). What is not on
    the diagonal is multiplied by ``scale``. The result is ``W' = inverse(sum(w_i * G_i)) * sum(w_i
    * G_i * W_i')``, which minimises ``sum(w_i * |X_i W' - X_i W_i'|^2)`` if ``scale`` is 1. A
    column whose input is 0 in all texts gets the mean, as does all else: embeddings, norms, biases.
    Jin et al. 2022, "Dataless Knowledge Fusion by Merging Weights of Language Models".
    """
    return _mean(request)


@merge_method(
    "fisher",
    title="Fisher-weighted averaging",
    reference="https://arxiv.org/abs/2111.09832",
    parameters=[
        _weight("Weight of the model's Fisher information."),
        Parameter(
            "floor",
            float,
            default=1e-10,
            minimum=1e-30,
            description="Least Fisher information that an element counts with.",
            examples=(1e-10, 1e-3),
        ),
        Parameter(
            "information",
            bool,
            default=True,
            description="Whether Fisher information is used. With a filter, `false` leaves some "
            "tensors out: they get the weighted mean.",
            examples=(True, False),
        ),
        *_READING,
    ],
    linear=True,
    measure=Measure("fisher", "fisher_average", "information"),
)
def fisher(request: Request) -> LinearForm:
    """Mean of the models, each element weighed by its Fisher information.

    A job lets each model read its text in blocks. An element's Fisher information ``F_i`` is the
    mean over the blocks of the squared derivative of the block's log-likelihood (the empirical
    Fisher: the tokens are the text's own). The result is ``sum(w_i * F_i * x_i) / sum(w_i * F_i)``,
    where an ``F_i`` below ``floor`` counts as ``floor``. Matena and Raffel 2021, "Merging Models
    with Fisher-Weighted Averaging".
    """
    return _mean(request)


@merge_method(
    "metagpt",
    title="MetaGPT (model-exclusive task arithmetic)",
    reference="https://arxiv.org/abs/2406.11385",
    parameters=[
        Parameter(
            "lambda",
            float,
            default=1.0,
            description="Factor of the summed task vectors.",
            examples=(1.0, 0.5, 1.3),
        ),
    ],
    inputs=Inputs(base="required", minimum=2),
    linear=True,
    measure=Measure("norms", "metagpt_sum"),
)
def metagpt(request: Request) -> LinearForm:
    """Task arithmetic whose weights follow from the lengths of the task vectors.

    A job measures the norm of each whole task vector ``t_i = x_i - base``, over all tensors that
    are merged. The result is ``base + lambda * sum(c_i * t_i)`` with ``c_i = |t_i|^2 /
    sum_k(|t_k|^2)``. Zhou et al. 2024, "MetaGPT: Merging Large Language Models Using Model
    Exclusive Task Arithmetic".
    """
    others = [i for i in range(len(request.models)) if i != request.base]
    share = request.parameters["lambda"] / max(len(others), 1)  # of vectors of one length
    return LinearForm(direct={request.base: 1.0}, deltas=dict.fromkeys(others, share))


def _bounded_solution(group: Group, error: float) -> tuple[torch.Tensor, float]:
    from shardmerge.methods.measured import kernels

    return kernels.regmean(group, error)


def _probed_solution(group: Group, places: np.ndarray) -> tuple[torch.Tensor, Recorded]:
    from shardmerge.methods.measured import kernels

    return kernels.probed_regmean(group, places)


def _verify_solution(group: Group, recorded: Recorded | None, reader: TensorReader) -> Sampled:
    from shardmerge.methods.measured import verify

    return verify.verified_regmean(group, recorded, reader)


@step_kernel(
    "regmean_solution",
    FLOAT32,
    workspace=Workspace(tensors=12.0, squares=16.0),
    bounds=_bounded_solution,
    probes=Probing(_probed_solution, _verify_solution),
)
def _regmean_solution(group: Group) -> torch.Tensor:
    """Solve a layer's regression; the second half of the inputs are Gram matrices."""
    from shardmerge.methods.measured import kernels

    return kernels.regmean(group)[0]


@step_kernel("fisher_average", FLOAT32, elementwise=True, passes=True)
def _fisher_average(group: Group) -> Passes:
    """Weigh elements; the second half of the inputs are their Fisher information."""
    from shardmerge.methods.measured import passes

    return passes.fisher(group)


@step_kernel("metagpt_share", FLOAT32, workspace=Workspace(blocks=1.0))
def _metagpt_share(group: Group) -> torch.Tensor:
    """Return a row that is full of a model's share of the squares of norms."""
    from shardmerge.methods.measured import kernels

    return kernels.share(group)


@step_kernel("metagpt_sum", FLOAT32, elementwise=True, passes=True)
def _metagpt_sum(group: Group) -> Passes:
    """Add task vectors to the base; the last inputs are their coefficients."""
    from shardmerge.methods.measured import passes

    return passes.weighted_sum(group)
