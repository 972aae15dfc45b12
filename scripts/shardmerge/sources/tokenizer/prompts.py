"""Tokens of texts, as a model's own tokenizer splits them: what routers are made from."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from shardmerge.base.errors import UserError, shortened
from shardmerge.base.files import parse_object
from shardmerge.sources.tokenizer.files import ReadFile, added_tokens, token_content

_TABLE, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


def prompt_tokens(
    prompts: Sequence[str], names: Collection[str], read: ReadFile, where: str
) -> dict[str, tuple[int, ...]]:
    """Return the tokens' ids of every text, its model's first token before it if there is one.

    Args:
        prompts: The texts.
        names: All files of the model.
        read: Returns a file's bytes.
        where: The model, for messages.

    Raises:
        UserError: If it has no tokenizer.json, or that cannot be read.
    """
    if _TABLE not in names:
        raise UserError(
            "has no tokenizer.json, which splits the prompts of `gate_mode: cheap_embed`",
            where,
            "Load its tokenizer with transformers' AutoTokenizer, and save it with "
            "`save_pretrained` into a folder with the model's other files.",
        )
    texts, tokenizer = _loaded(names, read, where)
    with _told("cannot split a prompt", where):
        begin = _begin(texts)
        return {
            text: tuple(tokenizer.encode(begin + text, add_special_tokens=False).ids)
            for text in prompts
        }


def tokens_of_texts(
    texts: Sequence[str], names: Collection[str], read: ReadFile, where: str
) -> list[tuple[int, ...]]:
    """Return the tokens' ids of every text alone, as the model's own tokenizer splits it.

    Args:
        texts: The texts.
        names: Files of the model, tokenizer.json among them.
        read: Returns a file's bytes.
        where: The model, for messages.

    Raises:
        UserError: If the tokenizer cannot be read.
    """
    _, tokenizer = _loaded(names, read, where)
    with _told("cannot split a token", where):
        return [tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


def _loaded(names: Collection[str], read: ReadFile, where: str) -> tuple[Mapping[str, Any], Any]:
    """Return the parsed files of a tokenizer, and the tokenizer."""
    wanted = [name for name in (_TABLE, _CONFIG, _SPECIAL) if name in names]
    data = {name: read(name) for name in wanted}
    texts = {name: parse_object(data[name], f"{where}, {name}") for name in wanted}
    return texts, _tokenizer(data[_TABLE], texts, f"{where}, {_TABLE}")


@contextlib.contextmanager
def _told(what: str, where: str) -> Iterator[None]:
    """Tell of whatever the library finds; its panics are no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({shortened(str(error))})", where) from None


def _tokenizer(table: bytes, texts: Mapping[str, Any], where: str) -> Any:
    """Return the tokenizer that tokenizer.json describes, with the tokens of its settings."""
    try:
        from tokenizers import AddedToken, Tokenizer
    except ImportError:
        raise UserError(
            "splitting texts needs the package `tokenizers`, which is not installed",
            where,
            "Install it: `pip install -r requirements-bench.txt`, or `pip install tokenizers`.",
        ) from None
    with _told("is not a tokenizer that can be read", where):
        made = Tokenizer.from_buffer(table)
        known = made.get_vocab(with_added_tokens=True)
        for token, flags in added_tokens(texts).items():
            if token in known:
                flags = {k: v for k, v in flags.items() if k not in ("content", "special")}
                if token not in {one.content for one in made.get_added_tokens_decoder().values()}:
                    made.add_special_tokens([AddedToken(token, special=True, **flags)])
        made.no_padding()
        made.no_truncation()
        return made


def _begin(texts: Mapping[str, Any]) -> str:
    for name in (_CONFIG, _SPECIAL):
        if token := texts.get(name, {}).get("bos_token"):
            return token_content(token)
    return ""
