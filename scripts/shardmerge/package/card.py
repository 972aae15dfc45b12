"""The model card: front matter that the Hub reads, and how the model was built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardmerge import __version__
from shardmerge.base.files import parse_object
from shardmerge.base.front_matter import card_text
from shardmerge.base.markdown import block, code, link, table
from shardmerge.base.text import plural
from shardmerge.benchmark.score_text import to_markdown
from shardmerge.benchmark.scores import ScoreTable, card_results
from shardmerge.export.registry import form_of
from shardmerge.package.card_coefficients import describe_coefficients
from shardmerge.package.card_picture import shows_picture
from shardmerge.package.card_usage import describe_methods, usage
from shardmerge.package.published_names import hub_name
from shardmerge.plan.description import BuildDescription, DescribedSource
from shardmerge.plan.paths import PICTURE
from shardmerge.recipe.naming import public_names
from shardmerge.sources.any_checkpoint import PIPELINE_INDEX
from shardmerge.sources.hub_store import HubStore
from shardmerge.sources.store import Origin

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PIPELINE = "text-generation"
TAGS = ("mergekit", "merge", "shardmerge")
_NUMERICS = {
    "float32": "Tensors are combined in float32 (float64 where a source is) and rounded once",
    "mergekit-0.1.5": "Every rounding of mergekit 0.1.5 is reproduced, and the result is rounded",
}


def make_card(
    description: BuildDescription, settings: Mapping[str, Any], scores: ScoreTable | None = None
) -> str:
    """Return the text of a model's README.md.

    Args:
        description: Of the build.
        settings: The configuration's ``card``: as in its schema, and as ``exports`` the
            repositories of the model's exports by form, as ``adapters`` those of its adapters.
        scores: Benchmark results, if there are any.

    Raises:
        UserError: If the front matter is not what was put into it.
    """
    from huggingface_hub import ModelCardData

    name = description.name
    measured = scores is not None and name in scores.models
    results: list[EvalResult] | None = card_results(scores, name) if measured else None
    named = base_models(description)
    data = ModelCardData(
        base_model=named or None,
        library_name=_library(description),
        pipeline_tag=_pipeline(description, settings),
        tags=list(dict.fromkeys([*TAGS, *(settings.get("tags") or [])])),
        license=settings.get("license") or "other",
        base_model_relation="merge" if named else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    body = "\n".join(_sections(description, settings, scores))
    return card_text(data, body, f"model {name!r}")


def parse_card_settings(text: str) -> dict[str, Any]:
    """Return the configuration's ``card`` from the JSON that a job is told.

    Raises:
        UserError: If it is none.
    """
    return parse_object(text, "--card")


def base_models(description: BuildDescription) -> list[str]:
    """Return the Hub names of a build's sources, that of its reference model first."""
    reference, sources = description.reference, description.sources
    ordered = [reference, *(key for key in sources if key != reference)]
    names = dict.fromkeys(hub_name(key, sources) for key in ordered)
    return [name for name in names if name]


def _sections(
    description: BuildDescription, settings: Mapping[str, Any], scores: ScoreTable | None
) -> list[str]:
    parts = [f"# {description.name}\n"]
    if settings.get("description"):
        parts.append(settings["description"].strip() + "\n")
    if settings.get("prompt_format"):
        parts += ["## Prompt format\n", settings["prompt_format"].strip() + "\n"]
    if description.checkpoint:
        parts += ["## What it is\n", _what(description)]
    elif text := usage(_pipeline(description, settings), description.dtype):
        parts += ["## How to use it\n", text]
    forms, adapters = settings.get("exports", {}), settings.get("adapters", ())
    if forms or adapters:
        parts += ["## Other forms\n", _forms(forms, adapters)]
    parts += ["## How it was built\n", _how(description)]
    parts += [describe_methods(stage.method for stage in description.stages)]
    parts += [describe_coefficients(description)]
    if shows_picture(description, settings):
        parts.append(f"![Coefficients of every layer and module]({PICTURE})\n")
    parts += ["## Sources\n", _sources(description)]
    if scores is not None:
        parts += ["## Benchmarks\n", to_markdown(scores)]
    parts += ["## Recipe\n", _recipe(description)]
    return parts


def _library(description: BuildDescription) -> str | None:
    """Return what loads the files, as the Hub knows it, None if that is not known."""
    if not description.checkpoint:
        return "transformers"
    return "diffusers" if PIPELINE_INDEX in description.files else None


def _pipeline(description: BuildDescription, settings: Mapping[str, Any]) -> str | None:
    """Return the task that the Hub lists the files under, None if that is not known."""
    return settings.get("pipeline_tag") or (None if description.checkpoint else PIPELINE)


def _what(description: BuildDescription) -> str:
    files = plural(len(description.shards), "safetensors file")
    tensors = plural(sum(len(shard.tensors) for shard in description.shards), "tensor")
    copied = ""
    if description.files:
        copied = f" The {plural(len(description.files), 'other file')} are those of the base."
    return (
        f"A checkpoint of {tensors} in {files}. Tensors were merged by their names, which are as "
        f"in the sources, so that the same programs load it.{copied} Every tensor was verified. No "
        "program was tried on it.\n"
    )


def _forms(repositories: Mapping[str, str], adapters: Sequence[str]) -> str:
    named = [(form_of(form).title, repo) for form, repo in repositories.items()]
    rows = []
    for title, repo in [*named, *(("LoRA adapter", repo) for repo in adapters)]:
        page = HubStore.page(Origin(repo))
        rows.append([title, link(code(repo), page) if page else code(repo)])
    return table(["form", "repository"], rows)


def _how(description: BuildDescription) -> str:
    stages = description.stages
    steps = ", then ".join(f"{code(s.method)} ({code(s.name)})" for s in stages)
    dtype = description.dtype or "each tensor's own type"
    return (
        f"Merged by shardmerge {__version__} from {_count(description)} in "
        f"{plural(len(stages), 'stage')}: {steps}. {_NUMERICS[description.numerics]} to {dtype}. "
        "The file `provenance.json` tells the content of every file that went in and, but for this "
        "card and its picture, came out.\n"
    )


def _count(description: BuildDescription) -> str:
    return plural(len(description.sources), "checkpoint" if description.checkpoint else "model")


def _sources(description: BuildDescription) -> str:
    names = public_names(description.sources)
    uses = {"config, layout": description.reference, "tokenizer": description.tokenizer}
    if description.checkpoint:
        uses = {"layout, other files": description.reference}
    rows = []
    for key, source in description.sources.items():
        used = ", ".join(use for use, model in uses.items() if model == key)
        if source.role == "adapter":
            used = "a LoRA adapter"
        if source.store.remote:
            model = _page(source, code(source.repo), Origin(source.repo))
            place = _page(source, code(source.commit[:12]), source.origin)
            revision = code(source.revision) if source.revision else "main"
        else:
            model, revision, place = code(names[key]), "", source.store.title
        rows.append([model, revision, place, used])
    parts = _decoded(description, names), _made_rows(description, names)
    return table(["model", "revision", "commit", "also gave"], rows) + "".join(parts)


def _made_rows(description: BuildDescription, names: Mapping[str, str]) -> str:
    """Return what is said of tokens that models lacked, "" if no rows were made for them."""
    told = [
        f"{code(names.get(model, model))} has embeddings of its own for {plural(own, 'token')}, "
        f"and got those of {made} others by {code(method)}"
        for model, method, own, made in description.tokens.made_rows
    ]
    return f"\n{'; '.join(told)}.\n" if told else ""


def _decoded(description: BuildDescription, names: Mapping[str, str]) -> str:
    """Return what is said of sources whose weights were quantised, "" if none were."""
    rows = [
        f"{code(names.get(model, model))} ({form}, {plural(count, 'weight')})"
        for model, forms in description.decoded.items()
        for form, count in forms.items()
    ]
    if not rows:
        return ""
    return (
        f"\nQuantised weights were decoded before they were merged: {', '.join(rows)}. The result "
        "inherits what rounding had taken from them.\n"
    )


def _page(source: DescribedSource, text: str, origin: Origin) -> str:
    page = source.store.page(origin)
    return link(text, page) if page else text


def _recipe(description: BuildDescription) -> str:
    stages = description.stages
    text = "\n---\n".join(stage.text.strip("\n") for stage in stages)
    note = "The configuration, as it was written:\n"
    if len(stages) > 1:
        note = f"The {len(stages)} documents of the configuration, as they were written:\n"
    return f"{note}\n{block(text, 'yaml')}"
