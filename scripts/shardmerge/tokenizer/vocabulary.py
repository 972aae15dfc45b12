"""A tokenizer's tokens by id: all that embeddings must follow, short enough for a lock."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shardmerge.digest import digest
from shardmerge.errors import UserError

#: Bytes of the longest vocabulary, as JSON: five times that of a million tokens.
_LONGEST = 32 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, as a text that is read when asked for.

    Args:
        text: Base64 of compressed JSON: ``[tokens by id, ids of added tokens]``, where null stands
            for an id without a token.
        expected: Digest that it must have, where a file says so.
        where: What to say in errors.
    """

    text: str
    expected: str | None = field(default=None, compare=False)
    where: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, ids: Mapping[str, int], added: Iterable[str] = ()) -> Vocabulary:
        """Return a vocabulary from its tokens.

        Args:
            ids: By token.
            added: The tokens that a tokenizer looks for before it splits a text, special ones
                among them.
        """
        found = [tokens_by_id(ids), sorted(ids[token] for token in added)]
        data = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
        return cls(base64.b64encode(zlib.compress(data, 9)).decode())

    @cached_property
    def _data(self) -> tuple[list[str | None], list[int]]:
        try:
            found = json.loads(_inflated(self.text))
            tokens, added = found
            whole = _is_sound(tokens, added) and self.expected in (None, digest(found))
        except (ValueError, TypeError, zlib.error, RecursionError):
            whole = False
        if not whole:
            raise UserError(
                "does not hold the tokens that its digest says",
                self.where,
                "Restore the lock from version control, or run `snakemake lock` to renew it.",
            )
        return tokens, added

    @property
    def tokens(self) -> list[str | None]:
        """The token of every id, None where there is none."""
        return self._data[0]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of every token, in the order of ids."""
        return {token: i for i, token in enumerate(self.tokens) if token is not None}

    @cached_property
    def added(self) -> tuple[str, ...]:
        """The added tokens in the order of their ids."""
        return tuple(self.tokens[number] for number in self._data[1])

    @cached_property
    def digest(self) -> str:
        """What tells two vocabularies apart, however they were compressed."""
        return digest(self._data)

    def __len__(self) -> int:
        """Number of ids, those without a token among them."""
        return len(self.tokens)


def _inflated(text: str) -> bytes:
    """Return what a text holds, compressed and in base64; no more than any real one.

    Raises:
        ValueError: If it holds more, or is cut off.
    """
    inflater = zlib.decompressobj()
    data = inflater.decompress(base64.b64decode(text, validate=True), _LONGEST)
    if not inflater.eof or inflater.unused_data:
        raise ValueError("is cut off, or too long")
    return data


def _is_sound(tokens: Any, added: Any) -> bool:
    if not isinstance(tokens, list) or not isinstance(added, list):
        return False
    if not all(token is None or isinstance(token, str) for token in tokens):
        return False
    ids = range(len(tokens))
    return all(type(i) is int and i in ids and tokens[i] is not None for i in added)


def tokens_by_id(ids: Mapping[str, int]) -> list[str | None]:
    """Return the token of every id, None where there is none."""
    tokens: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for token, number in ids.items():
        tokens[number] = token
    return tokens
