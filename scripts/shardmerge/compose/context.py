"""What the models of a recipe's stages know of it and of each other."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from shardmerge.base.numerics import Numerics
from shardmerge.compose.made_sources import FileKey, MadeSource
from shardmerge.compose.models import Model
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.references import Reference
from shardmerge.sources.lock import Lock


class Context(Protocol):
    """A recipe with its sources, and the models that it names; the composer is one.

    Args:
        recipe: The parsed recipe.
        lock: Its sources.
        numerics: In which stages are composed.
        delta_dtype: Code of the type of task vectors, or None for the stage's own.
        geometric: Names of the stages whose norms are merged by ratios.
        made: The sources that jobs make, as expressions call them; ``note_made`` adds one.
    """

    recipe: Recipe
    lock: Lock
    numerics: Numerics
    delta_dtype: str | None
    geometric: Collection[str]
    made: dict[FileKey, MadeSource]

    def model(self, reference: Reference) -> Model:
        """Return the model that a reference names: a source or a stage, with or without adapter."""
        ...

    def reference_source(self, stage: str) -> str:
        """Return the source whose config and layout a stage takes, through other stages."""
        ...

    def note_made(self, one: MadeSource) -> MadeSource:
        """Take a source that a job makes into the recipe's; return it."""
        self.made[one.key] = one
        return one
