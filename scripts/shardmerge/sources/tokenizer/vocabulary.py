"""A tokenizer's tokens by id: all that embeddings must follow, short enough for a lock."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError, shortened
from shardmerge.base.jsontext import parse_json

#: Ids of a vocabulary; the largest ones have a quarter of a million.
MAX_IDS = 1 << 20
#: Bytes of the longest vocabulary as JSON: five times those of the largest that is known.
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
            found = parse_json(_inflated(self.text), "")
            whole = _is_vocabulary(found) and self.expected in (None, digest(found))
        except (UserError, ValueError, TypeError, zlib.error):
            whole = False
        if not whole:
            raise UserError(
                "does not hold the tokens that its digest says",
                self.where,
                "Restore the lock from version control, or run `snakemake lock` to renew it.",
            )
        return found[0], found[1]

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


def _is_vocabulary(found: object) -> bool:
    """Whether a value is what ``Vocabulary.of`` writes."""
    if not (isinstance(found, list) and len(found) == 2 and all(type(f) is list for f in found)):
        return False
    tokens, added = found
    texts = [token for token in tokens if token is not None]
    return (
        len(tokens) <= MAX_IDS
        and all(type(token) is str for token in texts)
        and len(set(texts)) == len(texts)
        and all(type(i) is int and 0 <= i < len(tokens) for i in added)
        and all(tokens[i] is not None for i in added)
    )


def check_ids(ids: Mapping[str, int], where: str) -> None:
    """Check that a tokenizer's file gives every token an id of its own that tokenizers have.

    Raises:
        UserError: If it does not; names the first token.
    """
    taken: dict[int, str] = {}
    for token, number in ids.items():
        if not isinstance(token, str):
            raise UserError(f"has a token {shortened(token)} that is not a text", where)
        if type(number) is not int or not 0 <= number < MAX_IDS:
            raise UserError(
                f"gives the token {shortened(token)} the id {shortened(number)}, which is not a "
                f"whole number from 0 to {MAX_IDS - 1}",
                where,
            )
        if (other := taken.setdefault(number, token)) is not token:
            raise UserError(
                f"gives the tokens {shortened(other)} and {shortened(token)} one id, {number}",
                where,
                "An embedding stands for one token: take one of the two out.",
            )


def tokens_by_id(ids: Mapping[str, int]) -> list[str | None]:
    """Return the token of every id, None where there is none; the ids are ``check_ids``'s."""
    tokens: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for token, number in ids.items():
        tokens[number] = token
    return tokens
