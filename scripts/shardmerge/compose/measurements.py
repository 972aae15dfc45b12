"""What jobs measure of whole models before anything is merged: small sources of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.sources.lock import Lock

#: Of each kind; changes when its job makes something else of the same.
VERSIONS = {"hidden": 1, "grams": 1, "fisher": 1, "norms": 1}
_TITLES = {
    "hidden": "hidden states of",
    "grams": "Gram matrices of",
    "fisher": "Fisher information of",
    "norms": "norm of",
}


@dataclass(frozen=True)
class ModelMeasurement:
    """What a job measures: its result is a safetensors file that expressions read as a source.

    Args:
        kind: ``hidden`` (what a model makes of prompts), ``grams`` (of the inputs of its linear
            layers), ``fisher`` (information on its weights) or ``norms`` (of its difference from
            another model).
        models: The sources that are read, the one that is measured first.
        text: Path of the text that is read, or None.
        options: What else decides the result, JSON-able.
        digest: Of all this, with models and text as their content: what the result is known by.
    """

    kind: str
    models: tuple[str, ...]
    text: str | None
    options: Mapping[str, Any]
    digest: str

    @property
    def key(self) -> str:
        """What expressions call the result as a model."""
        return f"{_TITLES[self.kind]} {' - '.join(self.models)}"

    @property
    def file(self) -> str:
        return f"{self.digest}.safetensors"

    @property
    def identity(self) -> str:
        """What specifications of shards know the result by."""
        return f"{self.kind}:{self.digest}"


def model_measurement(
    kind: str,
    models: tuple[str, ...],
    lock: Lock,
    options: Mapping[str, Any],
    text: str | None = None,
) -> ModelMeasurement:
    """Return what is known by contents of models and text; arguments as ``ModelMeasurement``."""
    files = [{n: f.identity for n, f in lock.sources[key].files.items()} for key in models]
    content = lock.texts[text].identity if text else None
    found = digest([kind, VERSIONS[kind], files, content, options])
    return ModelMeasurement(kind, models, text, options, found)
