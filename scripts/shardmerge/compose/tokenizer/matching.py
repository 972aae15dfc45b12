"""Tokens of different tokenizers compared: by their text, by how a word begins, by what they do.

Byte-level tokenizers write ``Ġthe`` where others write ``▁the``, and each names its first token
otherwise. Here both are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

#: Marks of the beginning of a word.
_BYTE_MARK, _PIECE_MARK = "Ġ", "▁"
#: Parts of the names of tokens that are there for later.
_RESERVED = ("unused_token", "reserved_special_token")
#: What a token is compared by: how it is matched, and a text.
TokenKey = tuple[str, str]


def _byte_alphabet() -> dict[str, int]:
    """Return the bytes that the characters of byte-level tokenizers stand for.

    Those that can be printed stand for themselves, all others follow from code point 256 on:
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    return found | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class ComparedTokens:
    """A tokenizer's tokens as they are compared with those of another one.

    Args:
        ids: By token.
        special: Special tokens by what they are for.
        rows: Of the embeddings: a token whose id is not below has none.
    """

    def __init__(self, ids: Mapping[str, int], special: Mapping[str, str], rows: int) -> None:
        self.rows = rows
        self.ids = {token: i for token, i in ids.items() if i < rows}
        self._keys: dict[str, TokenKey] = {}
        self._roles: dict[str, str] = {}
        for role, token in special.items():
            self._roles.setdefault(token, role)
        marks = [sum(t.startswith(mark) for t in ids) for mark in (_BYTE_MARK, _PIECE_MARK)]
        self._is_bytes = marks[0] >= marks[1]

    def key(self, token: str) -> TokenKey:
        """Return what a token is compared by."""
        if token not in self._keys:
            self._keys[token] = self._made_key(token)
        return self._keys[token]

    def _made_key(self, token: str) -> TokenKey:
        mark = _BYTE_MARK if self._is_bytes else _PIECE_MARK
        if token.startswith(mark):
            return "word", self._plain(token[len(mark) :])
        if token in self._roles:
            return "special", self._roles[token]
        return "text", self._plain(token)

    def text(self, token: str) -> str:
        """Return what a token writes."""
        kind, text = self.key(token)
        return token if kind == "special" else f" {text}" if kind == "word" else text

    def row(self, key: TokenKey, *, prefix: bool = False, byte: bool = False) -> int | None:
        """Return the row of a token that another tokenizer has, None if there is none.

        Args:
            key: Of the token.
            prefix: Whether the longest token that it begins with will do.
            byte: Whether the token of the same byte will do.
        """
        found = self._by_key.get(key)
        if found is None and byte:
            found = self._byte(key)
        if found is None and prefix:
            found = next((self._by_key[one] for one in _prefixes(key) if one in self._by_key), None)
        return found

    @cached_property
    def unused(self) -> list[int]:
        """The rows that no text reaches: those without a token, and those of reserved tokens."""
        reserved = {
            row for token, row in self.ids.items() if any(word in token for word in _RESERVED)
        }
        return sorted(reserved | set(range(self.rows)).difference(self.ids.values()))

    @cached_property
    def _by_key(self) -> dict[TokenKey, int]:
        found: dict[TokenKey, int] = {}
        for token, row in self.ids.items():
            found.setdefault(self.key(token), row)
        return found

    def _byte(self, key: TokenKey) -> int | None:
        kind, text = key
        if kind != "text":
            return None
        if len(text) == 1 and ord(text) < 128:
            return self._by_key.get(("text", f"<0x{ord(text):02X}>"))
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            digits = text[3:5]
            if all(digit in "0123456789abcdefABCDEF" for digit in digits):
                byte = int(digits, 16)
                plain = self._by_key.get(("text", chr(byte))) if byte < 128 else None
                raw = next(char for char, value in _BYTES.items() if value == byte)
                return plain if plain is not None or not self._is_bytes else self.ids.get(raw)
        return None

    def _plain(self, token: str) -> str:
        """Return the text of a token without its mark; as it is if it is part of a character."""
        if not self._is_bytes:
            return token.replace(_PIECE_MARK, " ")
        try:
            return bytes([_BYTES[char] for char in token]).decode()
        except (KeyError, UnicodeDecodeError):
            return token


def _prefixes(key: TokenKey) -> Iterator[TokenKey]:
    """Yield what is left of a token without its end, the longest first; no blanks alone."""
    kind, text = key
    if kind == "special":
        return
    for end in range(len(text) - 1, 0, -1):
        if not text[:end].strip():
            return
        yield kind, text[:end]
