"""Recipes that are made of one template: they share a lock, and each has a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shardmerge.base.errors import UserError
from shardmerge.recipe.recipe import Recipe, parse_recipe
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Stage


@dataclass(frozen=True)
class Variant:
    """A recipe made of a template.

    Args:
        path: Where it lies, for messages.
        text: It.
        build: Name of the folder, below the results, of the model that it makes.
        template: Path of what it was made of, beside which the lock lies.
    """

    path: str
    text: str
    build: str
    template: str

    def parse(self) -> Recipe:
        """Return the recipe.

        Raises:
            UserError: For mistakes that show without the models; if it makes several models.
        """
        recipe = parse_recipe(self.text, self.path)
        if len(recipe.final) > 1:
            made = ", ".join(recipe.final)
            raise UserError(
                f"makes {len(recipe.final)} models ({made}); a sweep's recipe makes one",
                self.template,
                "Let one document read the others, or write a recipe for each.",
            )
        return replace(recipe, build=self.build)


class RecipeFamily:
    """Recipes as one, for their lock: what all of them name and need.

    Args:
        path: Of the template.
        recipes: At least one.
    """

    def __init__(self, path: str, recipes: Sequence[Recipe]) -> None:
        self.path = path
        self.recipes = recipes
        self.stages: dict[str, Stage] = {}
        for recipe in recipes:
            self.stages |= recipe.stages

    @property
    def named(self) -> tuple[tuple[Reference, str], ...]:
        """All that the lock must hold, each with its role."""
        return tuple(dict.fromkeys(pair for recipe in self.recipes for pair in recipe.named))

    @property
    def needs_vocabularies(self) -> bool:
        """Whether a recipe needs the models' tokens."""
        return any(recipe.needs_vocabularies for recipe in self.recipes)

    @property
    def needs_special_tokens(self) -> bool:
        """Whether a recipe compares tokens by what they are for."""
        return any(recipe.needs_special_tokens for recipe in self.recipes)

    @property
    def needs_templates(self) -> bool:
        """Whether a recipe needs the models' chat templates."""
        return any(recipe.needs_templates for recipe in self.recipes)

    @property
    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """The texts whose tokens must be known, by the source whose tokenizer splits them."""
        found: dict[str, dict[str, None]] = {}
        for recipe in self.recipes:
            for key, texts in recipe.prompts.items():
                found.setdefault(key, {}).update(dict.fromkeys(texts))
        return {key: tuple(texts) for key, texts in found.items()}

    @property
    def texts(self) -> Mapping[str, str]:
        """Files of text that models read when they are measured, each with file and line."""
        found: dict[str, str] = {}
        for recipe in self.recipes:
            found = {**recipe.texts, **found}
        return found

    def where(self, model: str) -> str:
        """Return file and line of the first place that names a model or adapter."""
        places = (recipe.where(model) for recipe in self.recipes if model in _names(recipe))
        return next(places, self.path)


def _names(recipe: Recipe) -> set[str]:
    return {reference.model for reference, _ in recipe.named}
