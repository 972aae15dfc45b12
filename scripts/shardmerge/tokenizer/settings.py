"""What a recipe says of a stage's tokenizer, typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardmerge.errors import UserError
from shardmerge.references import Reference


@dataclass(frozen=True)
class TokenRule:
    """Where a token's embedding comes from.

    Args:
        token: The token.
        kind: ``model``: from the same token of a model; ``token``: from another token of a model;
            ``zero``; None where only `force` was given.
        model: The model, or None.
        other: The other token, or its id.
        force: Whether models that have the token get this embedding too.
        where: File and line.
    """

    token: str
    kind: Literal["model", "token", "zero"] | None
    model: Reference | None
    other: str | int | None
    force: bool
    where: str


@dataclass(frozen=True)
class TokenizerSettings:
    """What the tokenizer of a stage's result is.

    Args:
        source: ``union``, ``base``, or a model.
        rules: Of single tokens, in the recipe's order.
        pad_to_multiple_of: What the number of embeddings is rounded up to, or None.
        where: File and line.
    """

    source: Literal["union", "base"] | Reference
    rules: tuple[TokenRule, ...]
    pad_to_multiple_of: int | None
    where: str

    @property
    def model(self) -> Reference | None:
        """The model that is named as the source, if one is."""
        return self.source if isinstance(self.source, Reference) else None


def unknown_rule(rule: TokenRule) -> UserError:
    """Return the error of a rule that is needed but does not say where the embedding comes from."""
    return UserError(
        f"token {rule.token!r} is not in every model, and its rule names no source",
        rule.where,
        "Write `source: MODEL`, `source: {kind: zero}` or `source: {kind: model_token, ...}`.",
    )
