"""What a lock holds of a model's tokenizer: its tokens, its chat template."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from shardmerge.errors import UserError
from shardmerge.lock import LockedSource
from shardmerge.recipe import Recipe
from shardmerge.tokenizer.chat import TEMPLATE_FILES, own_template
from shardmerge.tokenizer.files import Read, read_vocabulary


def lacking(recipe: Recipe, locked: LockedSource) -> list[str]:
    """Return what a recipe needs of a source's tokenizer that its lock does not hold."""
    needs = {
        "vocabulary": recipe.needs_vocabularies and locked.vocabulary is None,
        "chat template": recipe.needs_templates and locked.chat_template is None,
    }
    return [name for name, lacks in needs.items() if lacks]


def complete(locked: LockedSource, wanted: Collection[str], read: Read, where: str) -> LockedSource:
    """Return a source's lock with what ``lacking`` named.

    Args:
        locked: The source.
        wanted: Names as ``lacking`` gives them.
        read: Returns the bytes of one of its files.
        where: The model, for messages.

    Raises:
        UserError: If a file of its tokenizer is broken or of an unknown kind.
    """
    if "vocabulary" in wanted:
        locked = replace(locked, vocabulary=read_vocabulary(locked.files, read, where))
    if "chat template" in wanted:
        names = [name for name in TEMPLATE_FILES if name in locked.files]
        try:
            texts = {name: read(name).decode() for name in names}
            locked = replace(locked, chat_template=own_template(texts, where) or "")
        except UnicodeDecodeError:
            raise UserError("has a chat template that is not UTF-8", where) from None
    return locked
