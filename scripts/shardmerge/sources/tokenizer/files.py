"""A model's vocabulary from its tokenizer's files, as transformers would load them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from shardmerge.base.errors import UserError, shortened
from shardmerge.base.files import parse_object
from shardmerge.sources.tokenizer.vocabulary import Vocabulary, check_ids

#: Files that hold a vocabulary; the first that a model has counts.
TABLES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
#: Files that add tokens to it, or name some.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OTHERS = ("tekken.json", "tokenizer.tiktoken", "qwen.tiktoken", "spiece.model", "vocab.bpe")
#: Keys of tokenizer_config.json that name a token.
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

ReadFile = Callable[[str], bytes]


def vocabulary_files(names: Collection[str]) -> list[str]:
    """Return which of a model's files must be read for its vocabulary."""
    table = next((name for name in TABLES if name in names), None)
    return [] if table is None else [table, *(name for name in SETTINGS if name in names)]


def read_vocabulary(names: Collection[str], read: ReadFile, where: str) -> Vocabulary:
    """Return the vocabulary of a model; one without tokens if it has no tokenizer.

    Args:
        names: All files of the model.
        read: Returns a file's bytes.
        where: The model, for messages.

    Raises:
        UserError: If a file is broken, or the tokenizer is of a kind that cannot be read.
    """
    return Vocabulary.of(*read_ids(names, read, where))


def read_ids(
    names: Collection[str], read: ReadFile, where: str
) -> tuple[dict[str, int], dict[str, None]]:
    """Return ids by token, and the added tokens, as ``read_vocabulary`` does."""
    wanted = vocabulary_files(names)
    if not wanted:
        if other := next((name for name in _OTHERS if name in names), None):
            raise UserError(
                f"has its tokenizer in {other!r} only, which cannot be read here",
                where,
                "Load it with transformers' AutoTokenizer, save it with `save_pretrained` beside "
                "the model's other files in a folder of yours, and map the model to that folder "
                "with `sources` in the configuration: the folder then has a tokenizer.json.",
            )
        return {}, {}
    table, *settings = wanted
    texts = {name: parse_object(read(name), f"{where}, {name}") for name in settings}
    place = f"{where}, {table}"
    with readable(place):
        ids, added = _table(table, read(table), place)
        check_ids(ids, place)
        end = max(ids.values(), default=-1) + 1
        for token in _named_tokens(texts, table == "tokenizer.json"):
            if token not in ids:
                ids[token], end = end, end + 1
            added.setdefault(token)
    check_ids(ids, where)
    return ids, added


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Tell of a tokenizer's file that is not built as they are, whatever is odd about it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = shortened(str(error)).strip("'\"")
        raise UserError(
            f"is not a tokenizer that can be read ({type(error).__name__}: {reason})", where
        ) from None


def added_tokens(texts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of a tokenizer's added tokens, as tokenizer.json has them.

    Args:
        texts: Parsed files of a tokenizer, by name.
    """
    found: dict[str, dict[str, Any]] = {}
    config = texts.get("tokenizer_config.json", {})
    for row in config.get("added_tokens_decoder", {}).values():
        found[row["content"]] = {"normalized": True, **row}
    for row in texts.get("tokenizer.json", {}).get("added_tokens", ()):
        found.setdefault(row["content"], row)
    special = [*_named_tokens({k: v for k, v in texts.items() if k != "added_tokens.json"}, False)]
    for token in special:
        found.setdefault(token, {"content": token, "special": True, "normalized": False})
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {
        token: {"content": token} | {flag: bool(row.get(flag, False)) for flag in flags}
        for token, row in found.items()
    }


def special_tokens(names: Collection[str], read: ReadFile, where: str) -> dict[str, str]:
    """Return a model's special tokens by what they are for, such as ``bos_token``.

    Args:
        names: All files of the model.
        read: Returns a file's bytes.
        where: The model, for messages.
    """
    wanted = [
        name for name in ("special_tokens_map.json", "tokenizer_config.json") if name in names
    ]
    found: dict[str, str] = {}
    for name in wanted:
        texts = parse_object(read(name), f"{where}, {name}")
        with readable(f"{where}, {name}"):
            found |= {key: token_content(texts[key]) for key in NAMED_TOKENS if texts.get(key)}
    return {key: found[key] for key in NAMED_TOKENS if key in found}


def _table(name: str, data: bytes, where: str) -> tuple[dict[str, int], dict[str, None]]:
    """Return ids by token, and the added tokens, of a file that holds a vocabulary."""
    if name == "tokenizer.model":
        return {piece: i for i, piece in enumerate(_pieces(data))}, {}
    if name == "vocab.txt":
        return {line: i for i, line in enumerate(data.decode().splitlines())}, {}
    table = parse_object(data, where)
    if name == "vocab.json":
        return table, {}
    vocab = table["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pieces with their scores
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    rows = sorted(table.get("added_tokens") or (), key=lambda row: row["id"])
    ids = vocab | {row["content"]: row["id"] for row in rows}
    return ids, dict.fromkeys(row["content"] for row in rows)


def _named_tokens(texts: Mapping[str, Any], in_table: bool) -> Iterator[str]:
    """Yield the tokens that transformers adds where a vocabulary lacks them, in its order."""
    config = texts.get("tokenizer_config.json", {})
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        for _, row in sorted(decoder.items(), key=lambda item: int(item[0])):
            yield token_content(row)
    else:
        config = config | texts.get("special_tokens_map.json", {})
        if not in_table:
            added = texts.get("added_tokens.json", {})
            yield from sorted(added, key=added.get)
    for name in NAMED_TOKENS:
        if config.get(name):
            yield token_content(config[name])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    yield from map(token_content, extra.values() if isinstance(extra, dict) else extra)


def token_content(token: Any) -> str:
    """Return the text of a token, which files give alone or with how it is matched.

    Raises:
        TypeError: If it is none.
    """
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TypeError(f"{shortened(text)} is no token")
    return text


def _pieces(data: bytes) -> Iterator[str]:
    """Yield the pieces of a sentencepiece model: field 1 of each message that is field 1 of it.

    https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
    """
    for field, value in _fields(data):
        if field == 1:
            text = next((text for number, text in _fields(value) if number == 1), None)
            if text is None:
                raise ValueError("a piece has no text")
            yield text.decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of a protocol buffer's fields (bytes of length-delimited ones only).

    https://protobuf.dev/programming-guides/encoding/
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            _, place = _varint(data, place)
            continue
        if kind in (1, 5):
            place += 8 if kind == 1 else 4
            continue
        if kind != 2:
            raise ValueError(f"wire type {kind}")
        length, place = _varint(data, place)
        if place + length > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64 + 6, 7):
        byte = data[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
    raise ValueError("a number has more than 64 bits")
