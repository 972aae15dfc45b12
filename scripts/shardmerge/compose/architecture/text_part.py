"""Which tensors of a model with several parts are its text decoder, and that as a model.

``text_models.json`` is made from transformers by ``python -m tools.layouts``: which class holds a
text decoder alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shardmerge.compose.architecture import config_keys as keys
from shardmerge.compose.architecture.layouts import layout_of
from shardmerge.compose.architecture.modules import modules_of
from shardmerge.compose.architecture.names import is_head, layer_counts, layer_of
from shardmerge.compose.architecture.predictors import behind, text_section

TEXT_MODELS_FILE = Path(__file__).parent / "text_models.json"
#: Names of ``modules_of``.
TEXT = "text_decoder"
_OTHER_PARTS = {"vision_tower", "audio_tower", "multi_modal_projector"}
_OTHER_INPUTS = re.compile(r"vision|visual|audio")
#: Layers that a decoder has anew to look at pictures.
_CROSS = "cross_attention_layers"
#: What stands among a text decoder's tensors, and is none of a text model's.
_ADDED = re.compile(r"additional_|perceiver|resampler|cross_attn")
_STACK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.$")
#: Where a whole text model stands in an older one of several parts.
_WHOLE = re.compile(r"^(?:.*\.)?language_model\.(?=model\.|transformer\.|lm_head\.)")
#: Keys of the whole that hold for its text too, where its own section does not say them.
_SHARED = re.compile(r"(?:bos|eos|pad)_token_id|dtype|torch_dtype|transformers_version")
#: Keys of a configuration without sections that are about other parts.
_FOREIGN = re.compile(
    r"image|video|vision|visual|audio|mrope|perceiver|additional_vocab|alpha|cross_layer|freeze_"
    r"|qk_layer_norms|use_resampler"
)


@dataclass(frozen=True)
class TextPart:
    """The text decoder of a model.

    Args:
        own: Its tensors: the name that each has in a text model to the one that it is stored as.
        stack: The stored name of its layers.
        layers: Their stored numbers; the n-th is layer n of the text model.
    """

    own: Mapping[str, str]
    stack: str
    layers: tuple[int, ...]


def has_other_parts(tensors: Iterable[str]) -> bool:
    """Whether a model has a text decoder and parts for pictures or sound besides."""
    found = set(modules_of(tensors).values())
    return TEXT in found and bool(found & _OTHER_PARTS)


def is_text_into(tensors: Iterable[str], like: Iterable[str]) -> bool:
    """Whether one of two models is a text model and the other has a text decoder besides others.

    Args:
        tensors: All of a model.
        like: All of the other.
    """
    for one, other in ((tensors, like), (like, tensors)):
        if has_other_parts(one):
            return not any(_OTHER_INPUTS.search(name) for name in other)
    return False


def text_part(tensors: Iterable[str], config: Mapping[str, Any]) -> TextPart:
    """Return the text decoder of a model that ``has_other_parts``.

    Args:
        tensors: All of the model.
        config: Its config.json.
    """
    running = layout_of(config).renamed(tensors)
    owner = modules_of(running.values())
    text = {own: new for own, new in running.items() if owner[new] == TEXT}
    counts = layer_counts(text.values())
    main = max(counts, key=lambda s: (_STACK.search(s) is not None, counts[s]), default="")
    inserted = text_section(config)[1].get(_CROSS)
    inserted = {n for n in inserted if type(n) is int} if isinstance(inserted, list) else ()
    layers = tuple(n for n in range(counts.get(main, 0)) if n not in inserted)
    number = {n: i for i, n in enumerate(layers)}
    root = main[: main.rstrip(".").rfind(".") + 1]
    alone = _alone(root)
    found, stack = {}, main
    for own, new in text.items():
        place = layer_of(new)
        if behind(new, {}):  # for multi-token prediction, in a module of its own
            found[new] = own
        elif place is None:
            if _is_texts(new, root):
                found[_outside(new, root, alone)] = own
        elif place[0] == main and place[1] in number:
            rest = new.removeprefix(f"{main}{place[1]}.")
            found[f"{alone}{main.removeprefix(root)}{number[place[1]]}.{rest}"] = own
            stack = layer_of(own)[0]
    return TextPart(found, stack, layers)


def _is_texts(name: str, root: str) -> bool:
    """Whether a tensor outside layers is one that a text model has."""
    known = name.startswith(root) or is_head(name) or _WHOLE.match(name) is not None
    return known and not _ADDED.search(name)


def _alone(root: str) -> str:
    """Return what stands in front of a text model's tensors that a root stands before."""
    return root[match.end() :] if (match := _WHOLE.match(root)) else "model."


def _outside(name: str, root: str, alone: str) -> str:
    if name.startswith(root) and not is_head(name):
        return alone + name.removeprefix(root)
    match = _WHOLE.match(name)
    return name[match.end() :] if match else name


def text_config(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any] | None:
    """Return the configuration of a model's text decoder as a model.

    Args:
        config: Of the whole; a stranger's.
        tied: Whether it has no output embedding of its own.

    Returns:
        The configuration, None if it is not known which class holds such a decoder.
    """
    data = _data()
    prefix, section = text_section(config)
    kind = text_type(config)
    if not prefix and not any(key in config for key in keys.COUNT):
        return None  # not even the number of layers: all of it is the whole's default
    relative = data["relatives"].get(kind)
    values = _section_values(config, section, prefix)
    if relative:
        kind = relative["type"]
        values = _with_defaults(values, relative["defaults"])
        _set_plain(values)
    if kind not in data["classes"]:
        return None
    values |= {"architectures": [data["classes"][kind]], "model_type": kind}
    return values | {"tie_word_embeddings": tied}


def text_type(config: Mapping[str, Any]) -> str:
    """Return the ``model_type`` of a model's text decoder."""
    prefix, section = text_section(config)
    kind = section.get("model_type") if prefix else None
    whole = str(config.get("model_type"))
    return kind if isinstance(kind, str) else _data()["parts"].get(whole, whole)


def _section_values(
    config: Mapping[str, Any], section: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    shared = {k: v for k, v in config.items() if _SHARED.fullmatch(k)}
    if prefix:
        own = {k: v for k, v in section.items() if v is not None or k not in shared}
        return {**shared, **own}
    return {k: v for k, v in config.items() if not _FOREIGN.search(k) and not k.endswith("_config")}


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with what another class would take otherwise where they do not say it."""
    rope = values.get("rope_parameters")
    known = {*values, *(rope if isinstance(rope, Mapping) else ())}
    return {**{k: v for k, v in defaults.items() if k not in known}, **values}


def _set_plain(values: dict[str, Any]) -> None:
    """Take out what is only about pictures: layers, and positions in two dimensions.

    With text alone all three positions of a token are its place, so that they turn as one does.
    """
    inserted = values.pop(_CROSS, None)
    if isinstance(inserted, list):
        for key in keys.COUNT:
            if type(values.get(key)) is int:
                values[key] -= len(inserted)
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := values.get(key), Mapping):
            rope = {k: v for k, v in rope.items() if not k.startswith("mrope_")}
            rope |= {k: "default" for k in ("type", "rope_type") if rope.get(k) == "mrope"}
            plain = key == "rope_scaling" and all(v == "default" for v in rope.values())
            values[key] = None if plain else rope


@cache
def _data() -> dict[str, Any]:
    return json.loads(TEXT_MODELS_FILE.read_text(encoding="utf-8"))
