"""Several tokenizers become one: which tokens it has, by which ids, and where each is described.

Ids follow the order of the recipe's models and of the tokens within a model, never a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shardmerge.sources.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer: whose files it is written from, and what differs from them.

    Args:
        source: Key in the lock of the model whose files it is written from.
        original: That model's vocabulary.
        ids: By token.
        added: The tokens that are looked for before a text is split, each with the key of the
            model that says how (None: as plain added tokens are).
    """

    source: str
    original: Vocabulary
    ids: Mapping[str, int]
    added: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, vocabulary: Vocabulary) -> Tokenizer:
        """Return the tokenizer of a model of the lock."""
        return cls(source, vocabulary, vocabulary.ids, dict.fromkeys(vocabulary.added, source))

    @property
    def size(self) -> int:
        """Number of ids, those without a token among them."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def in_order(self) -> list[str]:
        """The tokens in the order of their ids."""
        return sorted(self.ids, key=self.ids.__getitem__)

    @property
    def is_original(self) -> bool:
        """Whether it is its source's, so that the source's files can be copied."""
        same = dict.fromkeys(self.original.added, self.source) == dict(self.added)
        return same and dict(self.ids) == dict(self.original.ids)

    def within(self, rows: int) -> Tokenizer:
        """Return the tokenizer without the tokens that have no embedding."""
        if self.size <= rows:
            return self
        ids = {token: i for token, i in self.ids.items() if i < rows}
        added = {token: key for token, key in self.added.items() if token in ids}
        return Tokenizer(self.source, self.original, ids, added)

    def with_added(self, tokens: Iterable[tuple[str, str | None]]) -> Tokenizer:
        """Return the tokenizer with more added tokens: (token, model that describes it)."""
        ids, added, end = dict(self.ids), dict(self.added), self.size
        for token, key in tokens:
            if token not in ids:
                ids[token], end = end, end + 1
            added[token] = key
        return Tokenizer(self.source, self.original, ids, added)


def union(base: Tokenizer, others: Sequence[Tokenizer]) -> Tokenizer:
    """Return the tokenizer with the tokens of all models; the base's keep their ids.

    New tokens come in the order of the models, by id within one: first those that were not added
    tokens in their models, then those that were in any. All of them are added tokens here, and of
    models that describe one differently the first counts.

    Args:
        base: Of the base model, without the tokens that have no embedding.
        others: Of the other models, likewise.
    """
    plain: dict[str, None] = {}
    added: dict[str, str | None] = {}
    for one in (base, *others):
        for token in one.in_order:
            if token in one.added:
                added.setdefault(token, one.added[token])
            else:
                plain.setdefault(token)
    new = [(token, None) for token in plain if token not in added and token not in base.ids]
    return base.with_added([*new, *added.items()])
