"""The modules of an architecture, from its tensors' names alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from shardmerge.compose.architecture.names import layer_counts, layer_of

#: What a model of one module calls it.
DEFAULT = "default"
#: In names of tensors: what tells a module of a model that has several. The first that fits counts.
_WORDS = (
    ("multi_modal_projector", re.compile(r"projector|merger|connector|aligner")),
    ("vision_tower", re.compile(r"vision|visual")),
    ("audio_tower", re.compile(r"audio")),
    ("encoder", re.compile(r"^(?:model\.)?encoder\.")),
    ("decoder", re.compile(r"^(?:model\.)?decoder\.")),
)
#: Other names that recipes use.
_ALSO = {"vision_model": "vision_tower", "audio_model": "audio_tower"}


def modules_of(tensors: Iterable[str]) -> dict[str, str]:
    """Return the module of every tensor.

    A model with one stack of layers is one module, ``default``. Else a module is a stack and what
    surrounds it: ``text_decoder``, ``vision_tower``, ``multi_modal_projector``; of an
    encoder-decoder ``encoder``, ``decoder`` and ``shared``.
    """
    names = list(tensors)
    if len(layer_counts(names)) <= 1:
        return dict.fromkeys(names, DEFAULT)
    found = {n: next((m for m, word in _WORDS if word.search(n)), "") for n in names}
    rest = "shared" if {"encoder", "decoder"} <= set(found.values()) else "text_decoder"
    found = {name: module or rest for name, module in found.items()}
    one = len(set(found.values())) == 1
    return dict.fromkeys(names, DEFAULT) if one else found


def assign(tensors: Iterable[str], keys: Collection[str]) -> dict[str, str | None]:
    """Return the key of ``modules`` that every tensor belongs to, None where there is none.

    Args:
        tensors: All of a model.
        keys: As a recipe writes them: names of ``modules_of``, or else prefixes of stacks of
            layers and ``default`` for all that is outside layers.
    """
    names = list(tensors)
    stacks = {prefix.rstrip(".") for prefix in layer_counts(names)}
    if len(stacks) > 1 and stacks & set(keys):
        prefixes = {name: layer_of(name) for name in names}
        found: Mapping[str, str] = {
            name: stack[0].rstrip(".") if stack else DEFAULT for name, stack in prefixes.items()
        }
    else:
        found = modules_of(names)
    written = {_ALSO.get(key, key): key for key in keys}
    return {name: written.get(module) for name, module in found.items()}


def main_stack(tensors: Iterable[str]) -> tuple[str, int]:
    """Return prefix and number of layers of a module's stack: the longest if it has several."""
    counts = layer_counts(tensors)
    prefix = max(counts, key=lambda p: (counts[p], -list(counts).index(p)), default="")
    return prefix, counts.get(prefix, 0)
