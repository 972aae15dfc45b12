"""The description of a build: all that people and the package are told of it, as the plan has it.

The plan makes it (``describe``), its file is called by the digest of its JSON, and jobs read it
once, as a ``BuildDescription``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.base import forms
from shardmerge.base.digest import digest
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.forms import FormError, entry
from shardmerge.base.numerics import Numerics
from shardmerge.base.once import once
from shardmerge.base.sealed import AGAIN
from shardmerge.base.sharedjson import shared_digest
from shardmerge.base.weightfolders import indexes_of
from shardmerge.plan.files import description_path
from shardmerge.sources.store import Origin, Store
from shardmerge.sources.stores import kinds, store_type


@dataclass(frozen=True)
class RecipeFile:
    """The recipe's file: its path and its text."""

    file: str = entry(forms.text)
    text: str = entry(forms.text)


@dataclass(frozen=True)
class StageText:
    """A document of the recipe: its name, its merge method, its text."""

    name: str = entry(forms.text)
    method: str = entry(forms.text)
    text: str = entry(forms.text)


@dataclass(frozen=True)
class TokenizerContent:
    """What the files of a build's tokenizer hold.

    Args:
        source: The model that they are from.
        tokens: How many tokens it has, if the recipe says anything of tokens.
        vocabulary: Digest of its tokens' ids, likewise.
        within: How many of the source's own tokens stay, if the tokens are changed.
        added: Added tokens, likewise: token, id, model that has it as an added token or None.
        template: The chat template, if the recipe chooses one.
        made_rows: Where rows of tokens are made of others: model, method, how many tokens have a
            row of their own, for how many others one is made.
        made: Names of the files that are written, not copied.
        read: Source files that they are written from: model, file, identity of the content.
    """

    source: str = entry(forms.text)
    tokens: int | None = entry(forms.count, None)
    vocabulary: str | None = entry(forms.text, None)
    within: int | None = entry(forms.count, None)
    added: tuple[tuple[str, int, str | None], ...] | None = entry(
        forms.listed(forms.row(forms.text, forms.count, forms.maybe(forms.text))), None
    )
    template: str | None = entry(forms.text, None)
    made_rows: tuple[tuple[str, str, int, int], ...] = entry(
        forms.listed(forms.row(forms.text, forms.text, forms.count, forms.count)), ()
    )
    made: tuple[str, ...] = entry(forms.listed(forms.text))
    read: tuple[tuple[str, str, str], ...] = entry(
        forms.listed(forms.row(forms.text, forms.text, forms.text))
    )


@dataclass(frozen=True)
class DescribedSource:
    """A source of a build.

    Args:
        kind: Of its store.
        repo, revision, commit: What pins it, if it is not on this machine: an ``Origin``.
        role: ``adapter``, or None for a model.
        files: Identity of the content of each file that is locked.
    """

    kind: str = entry(forms.one_of(kinds))
    repo: str | None = entry(forms.text, None)
    revision: str | None = entry(forms.text, None)
    commit: str | None = entry(forms.text, None)
    role: str | None = entry(forms.text, None)
    files: Mapping[str, str] = entry(forms.mapped(forms.text))

    def __post_init__(self) -> None:
        if self.store.remote and not (self.repo and self.commit):
            raise FormError("nothing pins it")

    @property
    def store(self) -> type[Store]:
        """The kind of place that it is from."""
        return store_type(self.kind)

    @property
    def origin(self) -> Origin:
        """What pins it, if it is not on this machine."""
        return Origin(self.repo, self.revision, self.commit)


@dataclass(frozen=True)
class DescribedMade:
    """A source that a job made, and what it was made from.

    Args:
        kind: A name in ``plan.making.MADE_KINDS``.
        digest: Of the job.
        files: Model, file and identity of the content of each file that was read.
        text: Path and SHA-256 of the text that was read, or None.
    """

    kind: str = entry(forms.text)
    digest: str = entry(forms.sha256)
    files: tuple[tuple[str, str, str], ...] = entry(
        forms.listed(forms.row(forms.text, forms.text, forms.text))
    )
    text: tuple[str, str] | None = entry(forms.maybe(forms.row(forms.text, forms.sha256)), None)


@dataclass(frozen=True)
class DescribedShard:
    """A shard of a build.

    Args:
        file: Its name relative to the model's folder.
        digest: Of its job.
        tensors: Dtype code and shape of each tensor, by its name in the file.
    """

    file: str = entry(forms.text)
    digest: str = entry(forms.text)
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = entry(
        forms.mapped(forms.row(forms.one_of(lambda: DTYPES), forms.listed(forms.count)))
    )


@dataclass(frozen=True)
class BuildDescription:
    """What a build is made from and how.

    Args:
        name: The stage that is built.
        recipe: Where it is from.
        stages: The documents that it needs, in their order.
        numerics: How it is computed.
        dtype: Name of the model's dtype; None where each tensor has its own.
        config: What is set in config.json, by its place.
        reference: The model that config.json and the order of the tensors are from.
        tokenizer: The model that the tokenizer is from.
        tokens: What the tokenizer's files hold.
        files: Small files of the package by name, with the identity of their content.
        sources: By reference: what the recipe is made of.
        shards: In the order of their names; those of folders stand last.
        coefficients: Terms of each tensor: label and coefficient (``terms_of``).
        config_removed: What is taken out of config.json, by its place.
        config_whole: The config.json that this is done to, if it is not the reference's.
        decoded: Of each source, how many quantised weights are decoded, by format.
        seeds: Of each stage that chooses at random; None if none does.
        allow_nonfinite: Whether shards may hold infinite values and NaN that no source has.
        checkpoint: Whether it is a checkpoint of any kind, and no model that transformers loads.
        made: Sources that jobs made for it.
    """

    name: str = entry(forms.text)
    recipe: RecipeFile = entry(forms.made_of(RecipeFile))
    stages: tuple[StageText, ...] = entry(forms.listed(forms.made_of(StageText)))
    numerics: str = entry(forms.one_of(lambda: tuple(Numerics)))
    dtype: str | None = entry(forms.maybe(forms.text))
    config: Mapping[str, Any] = entry(forms.table)
    reference: str = entry(forms.text)
    tokenizer: str = entry(forms.text)
    tokens: TokenizerContent = entry(forms.made_of(TokenizerContent))
    files: Mapping[str, str] = entry(forms.mapped(forms.text))
    sources: Mapping[str, DescribedSource] = entry(forms.mapped(forms.made_of(DescribedSource)))
    shards: tuple[DescribedShard, ...] = entry(forms.listed(forms.made_of(DescribedShard)))
    coefficients: Mapping[str, tuple[tuple[str, float], ...]] = entry(
        forms.mapped(forms.listed(forms.row(forms.text, forms.number)))
    )
    config_removed: tuple[str, ...] = entry(forms.listed(forms.text), ())
    config_whole: Mapping[str, Any] | None = entry(forms.maybe(forms.table), None)
    decoded: Mapping[str, Mapping[str, int]] = entry(
        forms.mapped(forms.mapped(forms.count)), default_factory=dict
    )
    seeds: Mapping[str, tuple[int, ...]] | None = entry(
        forms.mapped(forms.listed(forms.integer)), None
    )
    allow_nonfinite: bool = entry(forms.truth, False)
    checkpoint: bool = entry(forms.truth, False)
    made: tuple[DescribedMade, ...] = entry(forms.listed(forms.made_of(DescribedMade)), ())

    @property
    def varied(self) -> bool:
        """Whether not all tensors are made of the same: a picture of the terms shows something."""
        terms = list(self.coefficients.values())
        return any(other != terms[0] for other in terms)

    @property
    def digest(self) -> str:
        """Of all that the package is made from; names the description's file."""
        return shared_digest(self._data)

    @once
    def _data(self) -> dict[str, Any]:
        return forms.written(self)

    @property
    def indexes(self) -> list[str]:
        """Names of the indexes, one for each folder that has several weight files."""
        return indexes_of(shard.file for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data, not to be changed; ``from_json`` inverts it."""
        return self._data

    @classmethod
    def from_json(cls, data: Any, where: str) -> BuildDescription:
        """Return the description that ``to_json`` wrote.

        Args:
            data: What was written.
            where: What to say in errors.

        Raises:
            UserError: If it is none.
        """
        try:
            return forms.read(cls, data)
        except FormError as error:
            message = f"is damaged: {error}"
            raise UserError(message, where, AGAIN) from None


def load_description(name: str) -> BuildDescription:
    """Return the description of a build, which the plan made.

    Args:
        name: The build's digest.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = description_path(name)
    try:
        found = load_json(path)
        whole = digest(found) == name
    except UserError as error:
        raise UserError(error.message, error.where, AGAIN) from None
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise UserError("is damaged", str(path), AGAIN)
    return BuildDescription.from_json(found, str(path))
