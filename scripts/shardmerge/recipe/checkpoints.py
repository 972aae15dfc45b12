"""Documents that merge checkpoints of any kind, by their tensors' names: as mergekit-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.stage import Stage

#: Which tensors a result has: those that all inputs must have, any has, or all have.
TENSORS = ("same", "union", "intersection")
#: Keys that are about layers, modules and tokens, of which a checkpoint tells nothing.
_OF_MODELS = (
    *("slices", "modules", "stack", "other_modules"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)


def as_checkpoint(stage: Stage, table: Mapping[str, Node]) -> Stage:
    """Return the stage of a document, with what it says of checkpoints if it merges these.

    It does if it has the key ``tensors``, or names a file of weights as a model.

    Args:
        stage: As it was read otherwise.
        table: The document.

    Raises:
        UserError: With file and line, if it asks for what only models have.
    """
    files = [reference for reference in stage.references if reference.names_file]
    if "tensors" not in table and not files:
        return stage
    why = "has `tensors`" if "tensors" in table else f"merges the file {str(files[0])!r}"
    for key in _OF_MODELS:
        if key in table:
            raise table[key].error(
                f"`{key}` does not go with a document that {why}: nothing is known of such a "
                "checkpoint but the names of its tensors",
                "List whole checkpoints under `models`.",
            )
    for item in stage.inputs:
        if item.model.lora:
            raise UserError(
                f"{str(item.model)!r} adds an adapter, but a checkpoint does not tell what the "
                "adapter's modules are",
                item.where,
                "If `+` is part of a file's name, give the file another name under `sources` in "
                "the configuration.",
            )
    _check_gradients(stage)
    return replace(stage, tensors=_asked(table))


def _asked(table: Mapping[str, Node]) -> str:
    node = table.get("tensors")
    if node is None:
        return TENSORS[0]
    if node.value not in TENSORS:
        raise node.error(
            f"`tensors` must be {', '.join(f'`{one}`' for one in TENSORS[:-1])} or `{TENSORS[-1]}`",
            did_you_mean(str(node.value), TENSORS),
        )
    return node.value


def _check_gradients(stage: Stage) -> None:
    """Raise UserError if a parameter has several values for layers that there are not."""
    for settings in stage.levels:
        for name, setting in settings.items():
            for rule in setting.rules:
                if isinstance(rule.value, tuple) and len(set(rule.value)) > 1:
                    raise UserError(
                        f"parameter {name!r} has a gradient over layers, but a checkpoint's "
                        "layers are not known",
                        rule.where,
                        f"Write one number, with a `filter` for some of the tensors. "
                        f"mergekit-pytorch takes the first one, {rule.value[0]!r}.",
                    )
