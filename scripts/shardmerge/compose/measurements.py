"""What jobs measure of whole models before anything is merged: small sources of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.digest import digest
from shardmerge.base.forms import entry
from shardmerge.compose.made_sources import MadeSource
from shardmerge.sources.lock import Lock

#: Of each kind: its version, which changes when its job makes something else of the same, and what
#: a result is called.
MEASUREMENTS = {
    "hidden": (1, "hidden states of"),
    "grams": (1, "Gram matrices of"),
    "fisher": (1, "Fisher information of"),
    "norms": (1, "norm of"),
}


@dataclass(frozen=True)
class MeasureSpec(forms.Written):
    """What a job that measures models is told.

    Args:
        kind: ``hidden`` (what a model makes of prompts), ``grams`` (of the inputs of its linear
            layers), ``fisher`` (information on its weights) or ``norms`` (of its difference from
            another model).
        options: What else decides the result.
    """

    kind: str = entry(forms.text)
    options: Mapping[str, Any] = entry(forms.table)


def model_measurement(
    kind: str,
    models: tuple[str, ...],
    lock: Lock,
    options: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    text: str | None = None,
) -> MadeSource:
    """Return what is known by contents of models and text.

    Args:
        kind: As of ``MeasureSpec``.
        models: The sources that are read, the one that is measured first.
        lock: Of the recipe.
        options: As of ``MeasureSpec``.
        tensors: Dtype code and shape of each tensor of the result.
        text: Path of the text that is read, or None.
    """
    files = [{n: f.identity for n, f in lock.sources[key].files.items()} for key in models]
    content = lock.texts[text].identity if text else None
    found = digest([kind, MEASUREMENTS[kind][0], files, content, options])
    return _measurement(kind, models, lock, options, tensors, text, found)


def hidden_states(
    model: str, lock: Lock, mode: str, prompts: Sequence[Any], layers: int, width: int
) -> MadeSource:
    """Return what a job finds out of what a model makes of prompts.

    Args:
        model: The source that reads them.
        lock: Of the recipe.
        mode: The recipe's ``gate_mode``.
        prompts: Positive and negative ones of each expert.
        layers: Of the model.
        width: Of its hidden states.
    """
    files = {name: file.identity for name, file in lock.sources[model].files.items()}
    found = digest([MEASUREMENTS["hidden"][0], mode, prompts, files])
    shape = "F32", (len(prompts), width)
    tensors = {f"layers.{layer}": shape for layer in range(layers)}
    options = {"mode": mode, "prompts": prompts}
    return _measurement("hidden", (model,), lock, options, tensors, None, found)


def _measurement(
    kind: str,
    models: tuple[str, ...],
    lock: Lock,
    options: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    text: str | None,
    found: str,
) -> MadeSource:
    return MadeSource(
        kind=kind,
        title=f"{MEASUREMENTS[kind][1]} {' - '.join(models)}",
        digest=found,
        spec=MeasureSpec(kind=kind, options=options),
        inputs=tuple(tuple((key, name) for name in lock.sources[key].files) for key in models),
        text=text,
        tensors=tensors,
    )
