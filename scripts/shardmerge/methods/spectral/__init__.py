"""The methods that work on singular vectors of task vectors; importing registers them.

``decompose`` has what they share, with bounds of its errors; ``kernels`` has the methods. What a
merge job records of large tensors is in ``notes``. ``verify`` tests it without a decomposition, by
the ``equations`` that each method's ``rules`` make hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmerge.methods.registry import (
    Group,
    Inputs,
    MergeMethod,
    Parameter,
    Probing,
    Recorded,
    Workspace,
    merge_method,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from shardmerge.methods.probes import Sampled, TensorReader

_BASE = Inputs(base="required")
_WEIGHT = Parameter(
    "weight", float, "model", default=1.0, description="Weight of the model's task vector."
)
_DECOMPOSE = Parameter(
    "decompose",
    bool,
    default=True,
    description="Whether matrices are decomposed. With a filter, `false` leaves some out, such as "
    "embeddings.",
    examples=(True, False),
)
_LAMBDA = Parameter(
    "lambda",
    float,
    default=1.0,
    description="Factor of the merged task vector.",
    examples=(1.0, 0.5, 1.3),
)


@merge_method(
    "tsv_m",
    title="TSV-Merge (task singular vectors)",
    reference="https://arxiv.org/abs/2412.00081",
    parameters=[_WEIGHT, _DECOMPOSE, _LAMBDA],
    inputs=_BASE,
    workspace=Workspace(tensors=36.0),
)
def tsv_m(group: Group) -> torch.Tensor:
    """The task vectors' first singular vectors, decorrelated between models, and added.

    Of ``n`` task matrices ``v_i = w_i * (x_i - base) = U_i S_i V_i'`` (``'`` transposes) the first
    ``1 / n`` of the singular values are kept. ``U = [U_1 ... U_n]`` is replaced by ``P Q'`` of its
    decomposition ``P D Q'``, its nearest orthonormal matrix, and ``V`` likewise. The result is
    ``base + lambda * U diag(S_1 ... S_n) V'``. What is no matrix gets the mean of the ``v_i``, and
    so does a matrix with fewer rows or columns than there are models. Gargiulo et al. 2024, "Task
    Singular Vectors: Reducing Task Interference in Model Merging".
    """
    from shardmerge.methods.spectral import kernels

    return kernels.merged(group, kernels.tsv_m)[0]


@merge_method(
    "iso_c",
    title="Iso-C (isotropic merging)",
    reference="https://arxiv.org/abs/2502.04959",
    parameters=[_WEIGHT, _DECOMPOSE, _LAMBDA],
    inputs=_BASE,
    workspace=Workspace(tensors=28.0),
)
def iso_c(group: Group) -> torch.Tensor:
    """The sum of task vectors, all its singular values replaced by their mean.

    ``sum(w_i * (x_i - base)) = U S V'`` becomes ``base + lambda * mean(S) * U V'``. Singular values
    that are 0 stay so, since their vectors mean nothing. What is no matrix gets the mean of ``w_i *
    (x_i - base)``. Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common
    and Task-Specific Subspaces".
    """
    from shardmerge.methods.spectral import kernels

    return kernels.merged(group, kernels.iso_c)[0]


@merge_method(
    "iso_cts",
    title="Iso-CTS (isotropic merging with task-specific subspaces)",
    reference="https://arxiv.org/abs/2502.04959",
    parameters=[
        _WEIGHT,
        Parameter(
            "common",
            float,
            default=0.8,
            minimum=0.0,
            maximum=1.0,
            description="Share of the singular vectors that the sum of all task vectors gives.",
            examples=(0.8, 0.5, 0.0, 1.0),
        ),
        _DECOMPOSE,
        _LAMBDA,
    ],
    inputs=_BASE,
    workspace=Workspace(tensors=40.0),
    version=2,
)
def iso_cts(group: Group) -> torch.Tensor:
    """Iso-C, with the last singular vectors of the sum replaced by those of single models.

    Of a matrix with ``r`` singular values, ``k`` vectors are the first of the sum of ``v_i = w_i *
    (x_i - base)``, with left ones ``C``. Each of ``n`` models adds the first ``(r - k) / n`` of
    ``v_i - C C' v_i``. Here ``k`` is ``common * r``, moved so that ``(r - k) / n`` is the nearest
    whole number, as the authors' program does. All left ones ``U`` and all right ones ``V`` are
    replaced by their nearest orthonormal matrices. The result is ``base + lambda * s * U V'``,
    where ``s`` is the mean of all their singular values. What is no matrix gets the mean of the
    ``v_i``. Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and
    Task-Specific Subspaces".
    """
    from shardmerge.methods.spectral import kernels

    return kernels.merged(group, kernels.iso_cts)[0]


@merge_method(
    "subspace_boosting",
    title="Subspace Boosting",
    reference="https://arxiv.org/abs/2506.16506",
    parameters=[
        _WEIGHT,
        Parameter(
            "beta",
            float,
            default=0.01,
            minimum=0.0,
            maximum=1.0,
            description="Share of the sum of singular values from which on they are raised.",
            examples=(0.01, 0.0, 0.2, 0.5),
        ),
        _DECOMPOSE,
        _LAMBDA,
    ],
    inputs=_BASE,
    workspace=Workspace(tensors=28.0),
)
def subspace_boosting(group: Group) -> torch.Tensor:
    """Task arithmetic with the small singular values of the sum raised.

    Of ``sum(w_i * (x_i - base)) = U S V'`` let ``c`` be the first singular value with which the sum
    of the largest reaches ``beta`` of the sum of all. Those below it become ``c``. The result is
    ``base + lambda * U max(S, c) V'``. Singular values that are 0 stay so, since their vectors mean
    nothing. What is no matrix gets task arithmetic. Skorobogat et al. 2025, "Subspace-Boosted Model
    Merging".
    """
    from shardmerge.methods.spectral import kernels

    return kernels.merged(group, kernels.subspace_boosting, mean=False)[0]


def _has_bounds(method: MergeMethod, *, mean: bool = True) -> None:
    @method.bounded
    def _bounded(group: Group, error: float) -> tuple[torch.Tensor, float]:
        from shardmerge.methods.spectral import kernels

        return kernels.merged(group, getattr(kernels, method.name), error, mean=mean)

    def kernel(group: Group, places: np.ndarray) -> tuple[torch.Tensor, Recorded]:
        from shardmerge.methods.spectral import kernels

        return kernels.probed(group, getattr(kernels, method.name), places, mean=mean)

    def verify(group: Group, recorded: Recorded | None, reader: TensorReader) -> Sampled:
        from shardmerge.methods.spectral import rules, verify

        rule = rules.MATRIX_RULES[method.name]
        return verify.verified(group, recorded, reader, rule, mean=mean)

    method.probed(Probing(kernel, verify))


_has_bounds(tsv_m)
_has_bounds(iso_c)
_has_bounds(iso_cts)
_has_bounds(subspace_boosting, mean=False)
