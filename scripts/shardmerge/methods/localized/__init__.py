"""The methods that ask which elements matter to which models; importing registers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.methods.registry import (
    Group,
    Inputs,
    Parameter,
    Workspace,
    merge_method,
)

if TYPE_CHECKING:
    from shardmerge.methods.passes import Passes

_BASE = Inputs(base="required")
_WEIGHT = Parameter("weight", float, "model", description="Weight of the model's task vector.")
_LAMBDA = Parameter(
    "lambda",
    float,
    default=1.0,
    description="Factor of the merged task vector.",
    examples=(1.0, 0.5, 1.3),
)
_CONSENSUS = (
    Parameter(
        "threshold",
        float,
        "model",
        default=0.4,
        minimum=0.0,
        description="How large the model's own change must be, compared with what the others "
        "change: the larger, the fewer elements matter to it.",
        examples=(0.4, 0.0, 0.2, 1.5),
    ),
    Parameter(
        "agreement",
        int,
        default=2,
        minimum=0,
        description="Number of models to which an element must matter.",
        examples=(2, 0, 1, 3),
    ),
)


def _density(default: float) -> Parameter:
    return Parameter(
        "density",
        float,
        "model",
        default=default,
        minimum=0.0,
        maximum=1.0,
        description="Share of the task vector that is kept.",
        examples=(0.5, 0.0, 0.05, 0.3, 0.77, 1.0),
    )


@merge_method(
    "consensus_ta",
    title="Consensus task arithmetic (TALL masks)",
    reference="https://arxiv.org/abs/2405.07813",
    parameters=[_WEIGHT, *_CONSENSUS, _LAMBDA],
    inputs=_BASE,
    elementwise=True,
    passes=True,
    workspace=Workspace(tensors=5.0, per_input=1.0),
)
def consensus_ta(group: Group) -> Passes:
    """Task arithmetic, only of the elements that matter to several models.

    Of ``v_i = w_i * (x_i - base)`` and ``v = sum(v_i)``, an element matters to a model if
    ``|v_i| >= threshold_i * |v - v_i|``. The result is ``base + lambda * v`` where an element
    matters to at least ``agreement`` models, and the base elsewhere. Wang et al. 2024, "Localizing
    Task Information for Improved Model Merging and Compression".
    """
    from shardmerge.methods.localized import passes

    return passes.consensus_sum(group)


@merge_method(
    "consensus_ties",
    title="Consensus TIES (TALL masks)",
    reference="https://arxiv.org/abs/2405.07813",
    parameters=[
        _WEIGHT,
        _density(0.2),
        *_CONSENSUS,
        Parameter(
            "normalize",
            bool,
            default=False,
            description="Divide by the sum of the weights that agree in sign.",
        ),
        _LAMBDA,
    ],
    inputs=_BASE,
    passes=True,
    workspace=Workspace(per_input=0.25, blocks=48.0),
)
def consensus_ties(group: Group) -> Passes:
    """TIES, only of the elements that matter to several models.

    The task vectors ``v_i = w_i * (x_i - base)`` are trimmed and added where their signs agree, as
    in TIES, which gives ``v``; as in ``ties``, the share is of each tensor. An element matters to a
    model if ``|v_i| >= threshold_i * |v - v_i|``. The result is ``base + lambda * v`` where an
    element matters to at least ``agreement`` models, and the base elsewhere. Wang et al. 2024,
    "Localizing Task Information for Improved Model Merging and Compression".
    """
    from shardmerge.methods.localized import passes

    return passes.consensus_ties(group)


@merge_method(
    "pcb",
    title="PCB-Merging",
    reference="https://arxiv.org/abs/2410.02396",
    parameters=[
        Parameter(
            "weight",
            float,
            "model",
            default=1.0,
            description="Weight of the model's task vector.",
        ),
        _density(0.2),
        _LAMBDA,
    ],
    inputs=_BASE,
    passes=True,
    version=2,
    workspace=Workspace(per_input=1.25, blocks=64.0),
)
def pcb(group: Group) -> Passes:
    """Task vectors whose elements compete, within a model and between models.

    Of ``n`` task vectors ``v_i = x_i - base``, an element's score is ``b_i = softmax(n * norm(v_i *
    v_i)) * sum_j(softmax(norm(v_i * v_j)))``. Here ``norm`` brings the elements of a tensor to 0
    to 1, and a softmax is over all of them. The share ``density`` of largest scores is kept, others
    become 0. The result is ``base + lambda * sum(b_i * w_i * v_i) / sum(b_i)``. The paper ranks
    and normalises over the whole model, here it is done within each tensor. The authors' program
    has ``tanh`` in place of the second softmax, and cuts outliers off; this is the paper's formula.
    Du et al. 2024, "Parameter Competition Balancing for Model Merging".
    """
    from shardmerge.methods.localized import competition

    return competition.pcb(group)


@merge_method(
    "localize_and_stitch",
    title="Localize-and-Stitch (without data)",
    reference="https://arxiv.org/abs/2408.13656",
    parameters=[_density(0.1)],
    inputs=_BASE,
    passes=True,
    workspace=Workspace(per_input=0.25, blocks=48.0),
)
def localize_and_stitch(group: Group) -> Passes:
    """The largest elements of each task vector; where several models have them, their mean.

    Of each ``v_i = x_i - base`` the share ``density`` of largest magnitudes is kept, by a mask
    ``m_i``. The result is ``base + sum(m_i * v_i) / sum(m_i)``, and the base where no mask is set.
    The paper takes the largest of the whole model, here it is the share of each tensor.
    He et al. 2024, "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic". Masks
    that are trained on data are not here.
    """
    from shardmerge.methods.localized import passes

    return passes.localize_and_stitch(group)
