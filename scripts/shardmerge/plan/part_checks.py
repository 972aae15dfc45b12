"""Recipe checks of parts that only some models have, and of what is left out or decoded."""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.algebra.coefficients import decoded_of
from shardmerge.algebra.patterns import one_of_each
from shardmerge.base.findings import Finding
from shardmerge.compose.output_config import AUTO_MAP
from shardmerge.plan.checked_build import Case
from shardmerge.recipe.references import Reference
from shardmerge.sources.checkpoint_files import module_settings


def mtp_layers(case: Case) -> Iterator[Finding]:
    """Find layers for multi-token prediction that are not merged as all others are."""
    for stage in case.stages:
        for one in case.composer.model(Reference(stage.name)).assembly.predictors:
            if not one.kept:
                reason = f"{one.lead}, which the result follows, has none"
                if one.lead in one.having:
                    reason = "they have embeddings of their own, which do not follow the tokenizer"
                what = (
                    f"leaves out the layers for multi-token prediction of {', '.join(one.having)}: "
                    f"{reason}"
                )
            elif one.shared:
                what = (
                    "puts layers for multi-token prediction behind layers of slices, as the last "
                    "slice has them; what they predict may be worse"
                )
            else:
                what = (
                    f"keeps the layers for multi-token prediction of {one.lead} as they are, for "
                    "not all models have the same of them"
                )
            yield Finding("mtp-layers", what, stage.where, stage.name)


def module_folders(case: Case) -> Iterator[Finding]:
    """Find folders of sentence-transformers that only some models have, or have otherwise."""
    locked = case.composer.lock.sources
    for stage in case.stages:
        for one in case.composer.model(Reference(stage.name)).assembly.folders:
            others = ", ".join(name for name in one.having if name != one.lead)
            what = None
            if not one.kept:
                what = f"leaves out {one.folder} of {others}: {one.lead} has no such folder"
            elif not one.shared:
                has = (
                    f"those of {others} are of other shapes" if others else "no other model has it"
                )
                what = f"keeps the weights in {one.folder} of {one.lead} as they are: {has}"
            if what:
                yield Finding("module-folders", what, stage.where, stage.name)
    base = case.composer.reference_source(case.name)
    for key in case.read:
        own, kept = locked[key].files, locked[base].files
        names = [name for name in module_settings(kept) if name in own]
        if differing := [n for n in names if own[n].identity != kept[n].identity]:
            yield case.finding(
                "module-folders",
                f"{', '.join(differing)} of {key} and {base} differ; the result has those of "
                f"{base}",
            )


def quantised_source(case: Case) -> Iterator[Finding]:
    """Find sources whose weights are decoded."""
    for model, forms in decoded_of(one_of_each(case.expressions.values())).items():
        yield case.finding(
            "quantised-source",
            f"{model} is quantised ({', '.join(forms)}): the result inherits what rounding has "
            "taken from it. Merge the model that it was made from if that can be had",
        )


def stale_quantisation(case: Case) -> Iterator[Finding]:
    """Find sources whose config.json speaks of a quantisation that is not there."""
    for key in case.read:
        if case.composer.model(Reference(key)).is_stale:
            yield case.finding(
                "stale-quantisation",
                f"config.json of {key} says that its weights are quantised, but they are plain; "
                "they are merged as they are, and the result's config.json says nothing of it",
            )


def remote_code(case: Case) -> Iterator[Finding]:
    """Find code of a repository, which the result does not have."""
    for stage in case.stages:
        source = case.composer.reference_source(stage.name)
        if AUTO_MAP in case.composer.lock.sources[source].config:
            yield case.finding(
                "remote-code",
                f"config.json of {source} names code of its own (`{AUTO_MAP}`). The result is "
                "without it: it loads where transformers knows the architecture itself",
            )
            return


def text_into_vision(case: Case) -> Iterator[Finding]:
    """Find text models that are merged with the decoder of a larger one."""
    for stage in case.stages:
        merged = case.composer.model(Reference(stage.name)).assembly.texts
        for whole, into in dict.fromkeys((one.whole, one.into) for one in merged):
            texts = [one.text for one in merged if (one.whole, one.into) == (whole, into)]
            if into:
                told = "is a text model" if len(texts) == 1 else "are text models"
                message = (
                    f"{', '.join(map(repr, texts))} {told}: merged into the text decoder of "
                    f"{whole!r}, whose other parts stay as they are"
                )
            else:
                message = (
                    f"the result is a text model as {texts[0]!r} is: of {whole!r} only the text "
                    f"decoder is merged; with `base_model: {whole}` its other parts stay"
                )
            yield Finding("text-into-vision", message, stage.where, stage.name)
