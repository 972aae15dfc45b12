"""In what two models differ that do not fit together, in the terms that people choose models by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardmerge.base.configvalues import family
from shardmerge.base.errors import shortened
from shardmerge.compose.architecture import config_keys as keys
from shardmerge.compose.architecture.names import is_embedding, is_vocabulary
from shardmerge.compose.architecture.predictors import text_section
from shardmerge.compose.models import Model
from shardmerge.compose.text_model import text_model

#: Terms that are treated apart.
LAYERS, VOCABULARY, ARCHITECTURE = "layers", "vocabulary", "architecture"
#: How each term is told, in this order.
_TOLD = {
    ARCHITECTURE: "the architecture {}",
    LAYERS: "{} layers",
    **{term: told for term, (told, _) in keys.SIZES.items()},
    VOCABULARY: "a vocabulary of {}",
}
SAME_SIZE = "Only models of one architecture and size can be merged."
SLICES = "Name the layers to be merged under `slices`, with a `layer_range` for each."
TOKENS = (
    "Write `tokenizer_source: base` (the base model's tokens), `tokenizer_source: union` (those of "
    "all models) or `tokenizer_source: MODEL`: embeddings are then matched token by token."
)


def sizes(model: Model) -> dict[str, str]:
    """Return what a model's tensors and config.json say of its size, by term.

    Args:
        model: A source, or what is made of some; of one that sees or hears, its text decoder tells.
    """
    model = text_model(model)
    _, config = text_section(model.config)
    found: dict[str, Any] = {ARCHITECTURE: family(config) or family(model.config) or None}
    found[LAYERS] = max(model.layer_counts.values(), default=None)
    found |= {term: _number(config, names) for term, (_, names) in keys.SIZES.items()}
    for name, entry in model.table.items():
        if is_vocabulary(name) and entry.shape:
            found[VOCABULARY] = entry.shape[0]
        if is_embedding(name) and len(entry.shape) == 2:
            found[VOCABULARY], found["width"] = entry.shape
            break
    return {term: _shown(found[term]) for term in _TOLD if found.get(term) is not None}


def side_by_side(one: Model, other: Model) -> str | None:
    """Return a sentence of the terms in which two models differ, None if they agree in all.

    Args:
        one, other: The models; a term that one of them does not tell is not compared.
    """
    first, second = sizes(one), sizes(other)
    terms = [term for term in first if term in differing(one, other)]
    if not terms:
        return None
    return "; ".join(
        f"{model.name!r} has {_listed([_TOLD[term].format(told[term]) for term in terms])}"
        for model, told in ((one, first), (other, second))
    ) + "."  # fmt: skip


def differing(one: Model, other: Model) -> set[str]:
    """Return the terms in which two models differ; what one of them does not tell is none."""
    first, second = sizes(one), sizes(other)
    return {term for term in first if term in second and first[term] != second[term]}


def advice(one: Model, other: Model) -> str:
    """Return what keeps two models from being merged, side by side, and what can be done."""
    told = side_by_side(one, other)
    if told is None:
        return SAME_SIZE
    hint = {frozenset({LAYERS}): SLICES, frozenset({VOCABULARY}): TOKENS}.get(
        frozenset(differing(one, other)),
        f"{SAME_SIZE} Take models that were made from one base.",
    )
    return f"{told} {hint}"


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int), None)


def _shown(value: int | str) -> str:
    return str(value) if isinstance(value, int) else shortened(value).strip("'")


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
