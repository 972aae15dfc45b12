"""One document of a recipe, read into a stage, every mistake with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from shardmerge.base.errors import UserError, misspelt
from shardmerge.base.findings import Finding
from shardmerge.methods import registry
from shardmerge.recipe.checkpoints import as_checkpoint
from shardmerge.recipe.experts import EXPERT_KINDS, parse_experts
from shardmerge.recipe.extract_lora import parse_extraction
from shardmerge.recipe.extraction import EXTRACT
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.parameters import Setting, clamped_rules, parse_settings
from shardmerge.recipe.slices import (
    check_inputs,
    misplaced,
    parse_dtype,
    parse_model,
    parse_modules,
)
from shardmerge.recipe.stage import Stage
from shardmerge.recipe.tokenizer import parse_chat_template, parse_tokenizer

DOCUMENT_KEYS = (
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "stack",
    "other_modules",
    "tensors",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
#: What ``other_modules`` may be.
_OTHER_MODULES = ("keep", "drop")
#: Keys of other tools' recipes: the tool, what it does, and what to do.
_FOREIGN = {
    "genome": (
        "mergekit-evolve",
        "searches for a recipe",
        "Run `shardmerge search` with it, and build the `best.yaml` that this writes.",
    ),
}

#: Documents that are not about merging: the key that each has, and who reads it.
_KINDS: Mapping[str, Callable[[Node, str, str], Stage]] = {
    EXTRACT: parse_extraction,
    **dict.fromkeys(EXPERT_KINDS, parse_experts),
}


def parse_stage(node: Node, text: str, default_name: str) -> Stage:
    """Return the stage that a document describes; what is odd is noted on the node.

    Args:
        node: The document.
        text: Its source text.
        default_name: What it is called if it does not say.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    for key, (tool, purpose, advice) in _FOREIGN.items():
        if isinstance(node.value, dict) and key in node.value:
            raise node.error(f"this is a recipe for `{tool}`, which {purpose}", advice)
    for key, parse in _KINDS.items():
        if isinstance(node.value, dict) and key in node.value:
            return parse(node, text, default_name)
    table = node.mapping("a recipe document", DOCUMENT_KEYS, misplaced())
    table = {key: value for key, value in table.items() if value.value is not None}
    name = table["name"].text("name") if "name" in table else default_name
    if "merge_method" not in table:
        hint = "Write `merge_method: linear`, or another that docs/methods.md lists."
        raise node.error("the document has no `merge_method`", hint)
    method_node = table["merge_method"]
    method = registry.method(method_node.text("merge_method"), method_node.where)
    base = parse_model(table["base_model"]) if "base_model" in table else None
    stage = Stage(
        name=name,
        method=method.name,
        base_model=base,
        modules=parse_modules(table, node, base),
        parameters=parse_settings(table["parameters"]) if "parameters" in table else {},
        dtype=parse_dtype(table.get("dtype")),
        out_dtype=parse_dtype(table.get("out_dtype")),
        tokenizer=parse_tokenizer(table.get("tokenizer_source"), table.get("tokenizer")),
        chat_template=parse_chat_template(table.get("chat_template")),
        text=text,
        where=node.where,
        other_modules=_other_modules(table),
    )
    stage = as_checkpoint(stage, table)
    for piece in stage.slices:
        check_inputs(piece.inputs, method, piece.base_model or base, piece.where)
    node.warnings.extend(_check_names(stage, method))
    return stage


def _other_modules(table: Mapping[str, Node]) -> str | None:
    if "other_modules" not in table:
        return None
    node = table["other_modules"]
    if "modules" not in table:
        raise node.error("`other_modules` needs `modules`, which says which are not the others")
    if node.value not in _OTHER_MODULES:
        raise node.error(
            f"`other_modules` must be {' or '.join(f'`{one}`' for one in _OTHER_MODULES)}",
            "`keep` takes them as the base model has them, `drop` makes a model of the text alone.",
        )
    return node.value


def _check_names(stage: Stage, method: registry.MergeMethod) -> Iterator[Finding]:
    known = registry.parameter_names()
    for settings in stage.levels:
        for name, setting in settings.items():
            if name not in known and (near := misspelt(name, known)):
                raise UserError(
                    f"unknown parameter {name!r}",
                    setting.where,
                    f"Did you mean {near!r}? mergekit ignores unknown parameters: without "
                    "the line the model is the same.",
                )
            declared = method.parameter(name)
            if declared is None or declared.unused:
                what = "has no" if declared is None else "does not use its"
                message = (
                    f"merge_method {method.name!r} {what} parameter {name!r}; it is ignored, as "
                    "mergekit does"
                )
                yield Finding("ignored-parameter", message, setting.where)
                continue
            if declared.measuring:
                _check_measuring(name, setting)
            for rule in clamped_rules(setting, declared):
                message = (
                    f"parameter {name!r} is beyond {declared.minimum:g} to {declared.maximum:g}; "
                    "the nearer bound counts in its place, as in mergekit"
                )
                yield Finding("clamped-parameter", message, rule.where)


def _check_measuring(name: str, setting: Setting) -> None:
    """Refuse values for some tensors only of what says how a whole model is measured."""
    for rule in setting.rules:
        if rule.filter not in (None, "*") or isinstance(rule.value, tuple):
            raise UserError(
                f"parameter {name!r} says how a whole model is measured, and cannot differ between "
                "its tensors",
                rule.where,
                "Give it one value, without filters, for each model or for all.",
            )
