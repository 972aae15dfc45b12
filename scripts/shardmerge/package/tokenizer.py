"""The text of a merged tokenizer's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shardmerge.base.files import parse_object
from shardmerge.compose.tokenizer_files import TABLE, TOKENIZER_CONFIG
from shardmerge.plan.description import TokenizerContent
from shardmerge.recipe.chat import TEMPLATE_FILE
from shardmerge.sources.tokenizer.files import NAMED_TOKENS, added_tokens, readable, token_content

#: How tokens are matched that no model has as an added token.
_PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
_LISTS = ("extra_special_tokens", "additional_special_tokens")


def tokenizer_text(
    name: str, tokens: TokenizerContent, texts: Mapping[tuple[str, str], str]
) -> str:
    """Return the text of a file of a merged tokenizer.

    Args:
        name: tokenizer.json, tokenizer_config.json or chat_template.jinja.
        tokens: What the tokenizer's files hold.
        texts: By (model, file).

    Raises:
        UserError: If a model's file is broken.
    """
    if name == TEMPLATE_FILE:
        return tokens.template
    parsed: dict[str, dict[str, Any]] = {}
    for (model, file), text in texts.items():
        parsed.setdefault(model, {})[file] = parse_object(text, f"model {model!r}, {file}")
    own = parsed[tokens.source]
    with readable(f"model {tokens.source!r}"):
        made = {TABLE: _table, TOKENIZER_CONFIG: _config}[name](tokens, own, parsed)
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _table(
    tokens: TokenizerContent, own: Mapping[str, Any], parsed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return tokenizer.json: the source's, less the tokens without an embedding, and new ones."""
    table = own[TABLE] | {"model": _within(own[TABLE]["model"], tokens.within)}
    settings = {model: added_tokens(texts) for model, texts in parsed.items()}
    rows = []
    for token, number, model in tokens.added:
        found = settings[model][token] if model else {"content": token} | _PLAIN
        rows.append({"id": number} | found)
    return table | {"added_tokens": sorted(rows, key=lambda row: row["id"])}


def _within(model: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a tokenizer's model with the tokens of the first ids only."""
    if isinstance(model["vocab"], list):
        return model | {"vocab": model["vocab"][:count]}
    vocab = {token: number for token, number in model["vocab"].items() if number < count}
    if len(vocab) == len(model["vocab"]) or "merges" not in model:
        return model | {"vocab": vocab}
    prefix = len(model.get("continuing_subword_prefix") or "")

    def kept(merge: str | list[str]) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return left in vocab and right in vocab and left + right[prefix:] in vocab

    return model | {"vocab": vocab, "merges": [m for m in model["merges"] if kept(m)]}


def _config(
    tokens: TokenizerContent, own: Mapping[str, Any], _: Mapping[str, Any]
) -> dict[str, Any]:
    """Return tokenizer_config.json: the source's, without what other files say now."""
    config = dict(own.get(TOKENIZER_CONFIG, {}))
    if tokens.template is not None:
        config.pop("chat_template", None)
    if tokens.added is None:
        return config
    if config.pop("added_tokens_decoder", None) is None:
        config |= own.get("special_tokens_map.json", {})
    known = {token for token, *_ in tokens.added}
    for name in NAMED_TOKENS:
        if config.get(name):
            config[name] = token_content(config[name])
            if config[name] not in known:
                del config[name]
    for name in _LISTS:
        if isinstance(config.get(name), list):
            config[name] = [t for t in map(token_content, config[name]) if t in known]
    return config
