"""Recipe checks of mixtures of experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from shardmerge.base.findings import Finding
from shardmerge.plan.checked_build import Case
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Expert, Stage
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
        experts = stage.mixture.experts
        routed = [item.model for item in stage.inputs[: len(experts)]]
        noisy = any(one.noise for one in experts)
        factors = {1.0 if one.residual is None else one.residual for one in experts}
        contents = {_content(case, model) for model in routed}
        if len(routed) > 1 and len(contents) == len(factors) == 1 and not noisy:
            names = " and ".join(dict.fromkeys(map(str, routed)))
            what = f"are {names}" if len({*routed}) == 1 else f"have the same weights ({names})"
            message = (
                f"all experts {what}: the mixture computes what one of them does, until it is "
                "trained"
            )
            yield Finding("equal-experts", message, stage.inputs[0].where, stage.name)


def _content(case: Case, model: Reference) -> object:
    """Return what tells whether two models are the same: the content of weights, or the name."""
    locked = case.composer.lock.sources
    if model.lora or model.model not in locked:
        return model
    source = locked[model.model]
    files = sorted({tensor.file for tensor in source.tensors.values()})
    return tuple((name, source.files[name].identity) for name in files)


def equal_tokens(case: Case) -> Iterator[Finding]:
    """Find experts whose prompts are the same tokens in another order, which no sum tells apart."""
    for stage in case.stages:
        if stage.mixture is None or stage.mixture.gate_mode != "cheap_embed":
            continue
        known = case.composer.lock.sources[case.composer.reference_source(stage.name)].prompts
        seen: dict[object, Expert] = {}
        for expert in stage.mixture.experts:
            sides = tuple(
                frozenset(Counter(i for text in texts for i in known[text]).items())
                for texts in (expert.positive, expert.negative)
            )
            other = seen.setdefault(sides, expert)
            if {*other.positive} != {*expert.positive}:
                message = (
                    "the prompts of two experts are the same tokens in another order, which "
                    "`gate_mode: cheap_embed` cannot tell apart"
                )
                yield Finding("equal-prompts", message, expert.where, stage.name)


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
