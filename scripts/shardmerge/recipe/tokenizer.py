"""What a recipe says of tokenizers: `tokenizer_source`, the `tokenizer` block, `chat_template`."""

from __future__ import annotations

from typing import Literal

from shardmerge.base.errors import did_you_mean
from shardmerge.recipe.approximation import parse_approximation
from shardmerge.recipe.chat import CHAT_TEMPLATES
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.references import Reference, parse_reference
from shardmerge.recipe.slices import parse_model
from shardmerge.recipe.stage import TokenizerSettings, TokenRule

#: Older recipes write it in front of a model that is the source.
_MODEL = "model:"
#: Largest `pad_to_multiple_of`: rows are padded to some hundreds, for speed.
MAX_MULTIPLE = 1 << 20


def parse_tokenizer(source: Node | None, block: Node | None) -> TokenizerSettings | None:
    """Return what a document's `tokenizer_source` and `tokenizer` say, None if it has neither.

    Raises:
        UserError: If it has both, or one that is not understood.
    """
    if source is not None and block is not None:
        raise block.error("give `tokenizer_source` or `tokenizer`, not both")
    if source is not None:
        return TokenizerSettings(_source(source, "tokenizer_source"), (), None, source.where)
    if block is None:
        return None
    table = block.mapping("`tokenizer`", ("source", "tokens", "pad_to_multiple_of", "approximate"))
    table = {key: node for key, node in table.items() if node.value is not None}
    rules = []
    if "tokens" in table:
        rules = [_rule(token, node) for token, node in _members(table["tokens"])]
    multiple = table.get("pad_to_multiple_of")
    if multiple is not None and not (
        type(multiple.value) is int and 0 < multiple.value <= MAX_MULTIPLE
    ):
        raise multiple.error(
            f"`pad_to_multiple_of` must be a whole number from 1 to {MAX_MULTIPLE}"
        )
    return TokenizerSettings(
        _source(table["source"], "source") if "source" in table else "union",
        tuple(rules),
        multiple.value if multiple else None,
        block.where,
        parse_approximation(table["approximate"]) if "approximate" in table else None,
    )


def parse_chat_template(node: Node | None) -> str | None:
    """Return a document's chat template: ``auto``, a known name, or a Jinja template.

    Raises:
        UserError: If it is none of these.
    """
    if node is None:
        return None
    text = node.text("chat_template")
    if text == "auto" or text in CHAT_TEMPLATES:
        return text
    if len(text) < 20 or "{" not in text:
        raise node.error(
            f"the chat template {text!r} is neither a known name nor a Jinja template",
            did_you_mean(text, ["auto", *CHAT_TEMPLATES]),
        )
    return text


def _source(node: Node, name: str) -> Literal["union", "base"] | Reference:
    if node.value in ("union", "base"):
        return node.value
    if isinstance(node.value, str) and node.value.startswith(_MODEL):
        return parse_reference(node.value.removeprefix(_MODEL), node.where)
    if isinstance(node.value, str | dict):
        return parse_model(node)
    raise node.error(f"`{name}` must be `union`, `base` or a model")


def _members(node: Node) -> list[tuple[str, Node]]:
    if not isinstance(node.value, dict):
        raise node.error("`tokens` must map tokens to where their embeddings come from")
    members = node.mapping("`tokens`", tuple(node.value))
    return [(str(token), member) for token, member in members.items()]


def _rule(token: str, node: Node) -> TokenRule:
    table = {}
    if node.value is not None:
        table = node.mapping(f"token {token!r}", ("source", "force"))
    force = table.get("force")
    if force is not None and not isinstance(force.value, bool):
        raise force.error("`force` must be true or false")
    forced = bool(force and force.value)
    source = table.get("source")
    if source is None or source.value is None:
        return TokenRule(token, None, None, None, forced, node.where)
    if not (isinstance(source.value, dict) and "kind" in source.value):
        return TokenRule(token, "model", parse_model(source), None, forced, node.where)
    return _kind(token, source, forced)


def _kind(token: str, node: Node, force: bool) -> TokenRule:
    parts = node.mapping(f"the source of token {token!r}", ("kind", "model", "token", "token_id"))
    kind = parts["kind"].text("kind")
    if kind == "zero":
        return TokenRule(token, "zero", None, None, force, node.where)
    if kind != "model_token":
        hint = did_you_mean(kind, ["zero", "model_token"])
        raise parts["kind"].error(f"`kind` must be `zero` or `model_token`, not {kind!r}", hint)
    given = [parts[k] for k in ("token", "token_id") if k in parts and parts[k].value is not None]
    if "model" not in parts or len(given) != 1:
        raise node.error("`kind: model_token` needs `model` and either `token` or `token_id`")
    other = given[0].value
    if given[0] is parts.get("token_id") and (type(other) is not int or other < 0):
        raise given[0].error("`token_id` must be a whole number, 0 or above")
    if given[0] is parts.get("token"):
        other = given[0].text("token")
    return TokenRule(token, "token", parse_model(parts["model"]), other, force, node.where)
