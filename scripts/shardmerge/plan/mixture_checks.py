"""Recipe checks of mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.base.findings import Finding
from shardmerge.plan.checked_build import Case
from shardmerge.recipe.stage import Stage
from shardmerge.sources.tokens import Tokens, compare


def scales(stage: Stage) -> bool:
    """Whether a stage scales tensors on purpose."""
    if stage.mixture:
        return any(one.residual is not None for one in stage.mixture.all)
    return stage.method == "passthrough" and any("scale" in level for level in stage.levels)


def equal_experts(case: Case) -> Iterator[Finding]:
    """Find mixtures whose experts are one model."""
    for stage in case.stages:
        if stage.mixture is None:
            continue
        routed = stage.inputs[: len(stage.mixture.experts)]
        noisy = any(one.noise for one in stage.mixture.experts)
        if len(routed) > 1 and len({item.model for item in routed}) == 1 and not noisy:
            message = (
                f"all experts are {routed[0].model}: the mixture computes what one of them does, "
                "until it is trained"
            )
            yield Finding("equal-experts", message, routed[0].where, stage.name)


def expert_tokenizers(case: Case) -> Iterator[Finding]:
    """Find mixtures of models whose tokens differ."""
    composer = case.composer
    for stage in case.stages:
        if stage.mixture is None:
            continue
        wanted = [stage.reference_model, *(item.model for item in stage.inputs)]
        keys = list(dict.fromkeys(composer.reference_source(one.model) for one in wanted))
        tokens = compare([composer.lock.sources[key] for key in keys])
        if tokens is Tokens.SAME:
            continue
        message = (
            f"assembles models whose {tokens.difference}: {', '.join(keys)}. All experts get the "
            f"tokens of {keys[0]}, the base model"
        )
        yield Finding("expert-tokenizers", message, stage.where, stage.name)
