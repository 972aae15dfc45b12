"""One document of a recipe, read into a stage, every mistake with its line."""

from __future__ import annotations

import re

from shardmerge import registry
from shardmerge.dtypes import dtype_code
from shardmerge.errors import UserError, did_you_mean
from shardmerge.findings import Finding
from shardmerge.parameters import parse_settings
from shardmerge.slices import check_inputs, parse_model, parse_modules
from shardmerge.stage import Stage
from shardmerge.tokenizer.parsing import parse_chat_template, parse_tokenizer
from shardmerge.yamlfile import Node

DOCUMENT_KEYS = (
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")


def parse_stage(node: Node, text: str, default_name: str, warnings: list[Finding]) -> Stage:
    """Return the stage that a document describes.

    Args:
        node: The document.
        text: Its source text.
        default_name: What it is called if it does not say.
        warnings: Takes what is odd but allowed.

    Raises:
        UserError: With file and line, for any mistake that shows without the models.
    """
    table = node.mapping("a recipe document", DOCUMENT_KEYS)
    table = {key: value for key, value in table.items() if value.value is not None}
    name = table["name"].text("name") if "name" in table else default_name
    if not _SAFE_NAME.fullmatch(name):
        raise (table.get("name") or node).error(
            f"the name {name!r} cannot be a folder's name",
            "Use letters, digits, and `_ . + -`, the first a letter, digit or `_`.",
        )
    if "merge_method" not in table:
        raise node.error("the document has no `merge_method`")
    method_node = table["merge_method"]
    method = registry.method(method_node.text("merge_method"), method_node.where)
    base = parse_model(table["base_model"]) if "base_model" in table else None
    stage = Stage(
        name=name,
        method=method.name,
        base_model=base,
        modules=parse_modules(table, node, base),
        parameters=parse_settings(table["parameters"]) if "parameters" in table else {},
        dtype=_dtype(table.get("dtype")),
        out_dtype=_dtype(table.get("out_dtype")),
        tokenizer=parse_tokenizer(table.get("tokenizer_source"), table.get("tokenizer")),
        chat_template=parse_chat_template(table.get("chat_template")),
        text=text,
        where=node.where,
    )
    for piece in stage.slices:
        check_inputs(piece.inputs, method, piece.base_model or base, piece.where)
    _check_names(stage, method, warnings)
    return stage


def _dtype(node: Node | None) -> str | None:
    return None if node is None else dtype_code(node.text("dtype"), node.where)


def _check_names(stage: Stage, method: registry.MergeMethod, warnings: list[Finding]) -> None:
    known = {p.name for m in registry.methods() for p in m.parameters}
    own = {p.name for p in method.parameters}
    for settings in stage.levels:
        for name, setting in settings.items():
            if name not in known:
                raise UserError(
                    f"unknown parameter {name!r}", setting.where, did_you_mean(name, own or known)
                )
            declared = method.parameter(name)
            if declared is None or declared.unused:
                what = "has no" if declared is None else "does not use its"
                message = (
                    f"merge_method {method.name!r} {what} parameter {name!r}; it is ignored, as "
                    "mergekit does"
                )
                warnings.append(Finding("ignored-parameter", message, setting.where))
