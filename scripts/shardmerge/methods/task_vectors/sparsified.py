"""The methods that sparsify task vectors, or elect signs, before they add them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardmerge.base.errors import UserError
from shardmerge.methods.program import TYPES
from shardmerge.methods.registry import (
    Group,
    Inputs,
    MergeMethod,
    Request,
    Workspace,
    merge_method,
)
from shardmerge.methods.task_vectors.parameters import EPSILON, GAMMA, SEED, sparsifying

if TYPE_CHECKING:
    import numpy as np
    import torch

    from shardmerge.methods.passes import Passes

_BASE = Inputs(base="required")
_MERGEKIT_SUM = Workspace(tensors=8.0, per_input=1.0)
_MERGEKIT_VOTE = Workspace(tensors=3.0, per_input=3.0)


def _check_della(request: Request | Group) -> None:
    pairs = zip(request.per_input["density"], request.per_input["epsilon"], strict=True)
    for index, (density, epsilon) in enumerate(pairs):
        if index == request.base or density <= 0 or density >= 1:
            continue
        if density - epsilon <= 0 or density + epsilon >= 1:
            raise UserError(
                f"density {density:g} and epsilon {epsilon:g} of {request.models[index]} give"
                " probabilities outside of 0 to 1",
                hint=f"Choose an epsilon below {min(density, 1 - density):g}.",
            )


@merge_method(
    "ties",
    title="TIES",
    reference="https://arxiv.org/abs/2306.01708",
    parameters=sparsifying(True, False),
    inputs=_BASE,
    passes=True,
)
def ties(group: Group) -> Passes:
    """Task vectors trimmed to their largest elements, merged where their signs agree.

    Of each ``v_i = x_i - base`` the share ``density`` of largest magnitudes is kept. Each element's
    sign is that of ``sum(w_i * v_i)`` (0 counts as plus). The result is ``base + lambda * sum(w_i *
    v_i) / sum(w_i)``, summed over the models whose element has this sign. The paper takes the
    largest of the whole model, here as in mergekit it is the share of each tensor. Yadav et al.
    2023, "TIES-Merging".
    """
    from shardmerge.methods.task_vectors import keep, passes

    return passes.merge_task_vectors(group, keep.magnitude, consensus=True)


@ties.mergekit_kernel(workspace=_MERGEKIT_VOTE)
def _mergekit_ties(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.magnitude(group), consensus=True)


@merge_method(
    "dare_ties",
    title="DARE-TIES",
    reference="https://arxiv.org/abs/2311.03099",
    parameters=sparsifying(False, True, SEED),
    inputs=_BASE,
    deterministic=False,
    passes=True,
)
def dare_ties(group: Group) -> Passes:
    """Task vectors thinned at random, merged where their signs agree.

    Each element of ``v_i = x_i - base`` is kept with probability ``density``. What is kept is
    scaled to the L1 norm of the whole. Then signs are elected as in TIES. Yu et al. 2023, "Language
    Models are Super Mario".
    """
    from shardmerge.methods.task_vectors import keep, passes

    return passes.merge_task_vectors(group, keep.chance, consensus=True)


@dare_ties.mergekit_kernel(workspace=_MERGEKIT_VOTE)
def _mergekit_dare_ties(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.chance(group), consensus=True)


@merge_method(
    "dare_linear",
    title="DARE-linear",
    reference="https://arxiv.org/abs/2311.03099",
    parameters=sparsifying(False, True, SEED),
    inputs=_BASE,
    deterministic=False,
    passes=True,
)
def dare_linear(group: Group) -> Passes:
    """Task vectors thinned at random, and added.

    Each element of ``v_i = x_i - base`` is kept with probability ``density``. What is kept is
    scaled to the L1 norm of the whole. The result is ``base + lambda * sum(w_i * v_i)``. Yu et al.
    2023, "Language Models are Super Mario".
    """
    from shardmerge.methods.task_vectors import keep, passes

    return passes.merge_task_vectors(group, keep.chance, consensus=False)


@dare_linear.mergekit_kernel(workspace=_MERGEKIT_SUM)
def _mergekit_dare_linear(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.chance(group), consensus=False)


@merge_method(
    "breadcrumbs",
    title="Model Breadcrumbs",
    reference="https://arxiv.org/abs/2312.06795",
    parameters=sparsifying(False, False, GAMMA),
    inputs=_BASE,
    passes=True,
)
def breadcrumbs(group: Group) -> Passes:
    """Task vectors without their largest and their smallest elements, added.

    Of each ``v_i = x_i - base`` the share ``gamma`` of largest magnitudes is dropped. Of the rest,
    the largest that make up the share ``density`` are kept. The result is
    ``base + lambda * sum(w_i * v_i)``. Davari and Belilovsky 2023, "Model Breadcrumbs".
    """
    from shardmerge.methods.task_vectors import keep, passes

    return passes.merge_task_vectors(group, keep.between, consensus=False)


@breadcrumbs.mergekit_kernel(workspace=_MERGEKIT_SUM)
def _mergekit_breadcrumbs(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.between(group), consensus=False)


@merge_method(
    "breadcrumbs_ties",
    title="Model Breadcrumbs with TIES",
    reference="https://arxiv.org/abs/2312.06795",
    parameters=sparsifying(False, False, GAMMA),
    inputs=_BASE,
    passes=True,
)
def breadcrumbs_ties(group: Group) -> Passes:
    """Task vectors without their largest and smallest elements, merged where their signs agree.

    Sparsified as in Model Breadcrumbs, then signs are elected as in TIES. Davari and Belilovsky
    2023, "Model Breadcrumbs".
    """
    from shardmerge.methods.task_vectors import keep, passes

    return passes.merge_task_vectors(group, keep.between, consensus=True)


@breadcrumbs_ties.mergekit_kernel(workspace=_MERGEKIT_VOTE)
def _mergekit_breadcrumbs_ties(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.between(group), consensus=True)


@merge_method(
    "della",
    title="DELLA",
    reference="https://arxiv.org/abs/2406.11617",
    parameters=sparsifying(True, True, EPSILON, SEED),
    inputs=_BASE,
    passes=True,
    deterministic=False,
    check=_check_della,
    examples={"": {"epsilon": 0.15}},
)
def della(group: Group) -> Passes:
    """Task vectors thinned at random by rank, merged where their signs agree.

    Within each row of ``v_i = x_i - base``, an element of rank ``r`` of ``n`` by magnitude is kept
    with probability ``density - epsilon + 2 * epsilon * r / (n - 1)``. What is kept is scaled to
    the L1 norm of the whole. Then signs are elected as in TIES. Deep et al. 2024, "DELLA-Merging".
    """
    from shardmerge.methods.task_vectors import keep, passes

    _check_della(group)
    return passes.merge_task_vectors(group, keep.ranked_chance, consensus=True)


@della.mergekit_kernel(workspace=_MERGEKIT_VOTE)
def _mergekit_della(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.ranked_chance(group), consensus=True)


@merge_method(
    "della_linear",
    title="DELLA-linear",
    reference="https://arxiv.org/abs/2406.11617",
    parameters=sparsifying(False, True, EPSILON, SEED),
    inputs=_BASE,
    passes=True,
    deterministic=False,
    check=_check_della,
    examples={"": {"epsilon": 0.15}},
)
def della_linear(group: Group) -> Passes:
    """Task vectors thinned at random by rank, and added.

    Within each row of ``v_i = x_i - base``, an element of rank ``r`` of ``n`` by magnitude is kept
    with probability ``density - epsilon + 2 * epsilon * r / (n - 1)``. What is kept is scaled to
    the L1 norm of the whole. The result is ``base + lambda * sum(w_i * v_i)``. Deep et al. 2024,
    "DELLA-Merging".
    """
    from shardmerge.methods.task_vectors import keep, passes

    _check_della(group)
    return passes.merge_task_vectors(group, keep.ranked_chance, consensus=False)


@della_linear.mergekit_kernel(workspace=_MERGEKIT_SUM)
def _mergekit_della_linear(group: Group) -> torch.Tensor:
    from shardmerge.methods.task_vectors import mergekit

    return mergekit.merge_task_vectors(group, mergekit.ranked_chance(group), consensus=False)


def _thins(group: Group) -> bool:
    """Whether not all is kept of some task vector."""
    return any(group.per_input["density"][i] < 1 for i in group.others)


def _in_passes(method: MergeMethod, keep: str, *, consensus: bool) -> None:
    """Declare passes with the bits of the mergekit kernel."""
    chooses = _thins if keep in ("magnitude", "between") else None

    @method.mergekit_passes(by_torch=TYPES if keep == "ranked_chance" else (), chooses=chooses)
    def _mergekit(group: Group) -> Passes:
        from shardmerge.methods.task_vectors import mergekit_passes as passes

        return passes.merge_task_vectors(group, getattr(passes, keep), consensus)


_in_passes(dare_ties, "chance", consensus=True)
_in_passes(dare_linear, "chance", consensus=False)
_in_passes(ties, "magnitude", consensus=True)
_in_passes(breadcrumbs, "between", consensus=False)
_in_passes(breadcrumbs_ties, "between", consensus=True)
_in_passes(della, "ranked_chance", consensus=True)
_in_passes(della_linear, "ranked_chance", consensus=False)


def _says_what_stays(method: MergeMethod, rule: str, *, consensus: bool) -> None:
    @method.keeps
    def _kept(group: Group) -> Mapping[int, np.ndarray]:
        from shardmerge.methods.task_vectors import kept

        return kept.sparsified(group, getattr(kept, rule), consensus=consensus)


_says_what_stays(ties, "largest", consensus=True)
_says_what_stays(dare_ties, "chance", consensus=True)
_says_what_stays(dare_linear, "chance", consensus=False)
_says_what_stays(breadcrumbs, "between", consensus=False)
_says_what_stays(breadcrumbs_ties, "between", consensus=True)
_says_what_stays(della, "ranked_chance", consensus=True)
_says_what_stays(della_linear, "ranked_chance", consensus=False)
