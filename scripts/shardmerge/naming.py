"""Names of documents: each is a folder's too, whatever the recipe writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from shardmerge.references import Reference
from shardmerge.stage import Slice, Stage
from shardmerge.tokenizer.settings import TokenizerSettings

_SAFE = re.compile(r"[A-Za-z0-9_][\w.+-]*")


def folder_name(name: str) -> str:
    """Return a name as a folder may have it: itself where it can be, else without odd characters.

    What is left has letters, digits and ``_ . + -``, and begins with a letter, a digit or ``_``.
    """
    if _SAFE.fullmatch(name):
        return name
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    return plain if _SAFE.fullmatch(plain) else f"model-{plain}".rstrip("-")


def renamed(stage: Stage, names: Mapping[str, str]) -> Stage:
    """Return a stage under its new name, which reads others by theirs.

    Args:
        stage: As its document was read.
        names: Of all documents: as written, and new.
    """

    def reference(given: Reference | None) -> Reference | None:
        if given is None or given.model not in names:
            return given
        return Reference(names[given.model], None, given.lora)

    def piece(given: Slice) -> Slice:
        inputs = tuple(replace(item, model=reference(item.model)) for item in given.inputs)
        return replace(given, inputs=inputs, base_model=reference(given.base_model))

    def tokenizer(given: TokenizerSettings) -> TokenizerSettings:
        rules = tuple(replace(rule, model=reference(rule.model)) for rule in given.rules)
        source = reference(given.model) if given.model else given.source
        return replace(given, source=source, rules=rules)

    return replace(
        stage,
        name=names[stage.name],
        base_model=reference(stage.base_model),
        modules=tuple(replace(m, slices=tuple(map(piece, m.slices))) for m in stage.modules),
        tokenizer=tokenizer(stage.tokenizer) if stage.tokenizer else None,
    )
