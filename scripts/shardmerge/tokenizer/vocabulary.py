"""A tokenizer's tokens by id: all that embeddings must follow, short enough for a lock."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from shardmerge.digest import digest


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, as a text that is read when asked for.

    Args:
        text: Base64 of compressed JSON: ``[tokens by id, ids of added tokens]``, where null stands
            for an id without a token.
    """

    text: str

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
        tokens, added = json.loads(zlib.decompress(base64.b64decode(self.text)))
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


def tokens_by_id(ids: Mapping[str, int]) -> list[str | None]:
    """Return the token of every id, None where there is none."""
    tokens: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for token, number in ids.items():
        tokens[number] = token
    return tokens
