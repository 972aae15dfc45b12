"""Whether models have the same tokens, as far as their locks tell: a row then stands for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from enum import Enum

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.recipe.chat import TEMPLATE_FILES, own_template
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.variants import RecipeFamily
from shardmerge.sources.lock import LockedSource
from shardmerge.sources.tokenizer.files import (
    ReadFile,
    read_ids,
    read_vocabulary,
    special_tokens,
    vocabulary_files,
)
from shardmerge.sources.tokenizer.prompts import prompt_tokens
from shardmerge.sources.tokenizer.vocabulary import tokens_by_id


def lacking(recipe: Recipe | RecipeFamily, key: str, locked: LockedSource) -> list[str]:
    """Return what a recipe needs of a source's tokenizer that its lock does not hold.

    Args:
        recipe: The recipe.
        key: The source as the recipe names it.
        locked: Its lock.
    """
    needs = {
        "vocabulary": recipe.needs_vocabularies and locked.vocabulary is None,
        "special tokens": recipe.needs_special_tokens and locked.special_tokens is None,
        "chat template": recipe.needs_templates and locked.chat_template is None,
        "tokens of prompts": set(recipe.prompts.get(key, ())) - set(locked.prompts),
    }
    return [name for name, lacks in needs.items() if lacks]


def with_lacking(
    locked: LockedSource,
    wanted: Collection[str],
    read: ReadFile,
    where: str,
    prompts: Sequence[str] = (),
) -> LockedSource:
    """Return a source's lock with what ``lacking`` named.

    Args:
        locked: The source.
        wanted: Names as ``lacking`` gives them.
        read: Returns the bytes of one of its files.
        where: The model, for messages.
        prompts: All texts whose tokens must be known.

    Raises:
        UserError: If a file of its tokenizer is broken or of an unknown kind.
    """
    if "tokens of prompts" in wanted:
        locked = replace(locked, prompts=prompt_tokens(prompts, locked.files, read, where))
    if "vocabulary" in wanted:
        locked = replace(locked, vocabulary=read_vocabulary(locked.files, read, where))
    if "special tokens" in wanted:
        locked = replace(locked, special_tokens=special_tokens(locked.files, read, where))
    if "chat template" in wanted:
        names = [name for name in TEMPLATE_FILES if name in locked.files]
        try:
            texts = {name: read(name).decode() for name in names}
            locked = replace(locked, chat_template=own_template(texts, where) or "")
        except UnicodeDecodeError:
            raise UserError("has a chat template that is not UTF-8", where) from None
    return locked


#: Files that hold a tokenizer: the first row that all models have is compared.
_TABLES = (
    ("tokenizer.model",),
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)


class Tokens(Enum):
    """What is known of models' tokens."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"  # their files differ, which may be about other things

    @property
    def difference(self) -> str:
        """What differs, in words."""
        if self is Tokens.UNKNOWN:
            return "tokenizer files differ (whether their tokens do, the lock does not tell)"
        return "tokenizers differ"


def compare(sources: Collection[LockedSource]) -> Tokens:
    """Return whether models have the same tokens; one without a tokenizer counts for any."""
    having = [source for source in sources if vocabulary_files(source.files)]
    if _same_files(having):
        return Tokens.SAME
    known = {_tokens(source) for source in having}
    if None in known:
        return Tokens.UNKNOWN
    return Tokens.DIFFERENT if len(known) > 1 else Tokens.SAME


def with_tokens(
    sources: Mapping[str, LockedSource], reader: Callable[[str], ReadFile]
) -> dict[str, LockedSource]:
    """Return the sources of a lock, with the tokens of models at hand where files differ.

    Nothing is fetched for it, and a file that cannot be read is left unknown.

    Args:
        sources: By reference.
        reader: Given a reference, returns what reads its files.
    """
    models = {key: source for key, source in sources.items() if source.role == "model"}
    if compare(models.values()) is not Tokens.UNKNOWN:
        return dict(sources)
    found = dict(sources)
    for key, source in models.items():
        needed = _tokens(source) is None and vocabulary_files(source.files)
        if needed and not source.store.remote:
            try:
                ids, _ = read_ids(source.files, reader(key), f"model {key!r}")
            except UserError:
                continue
            found[key] = replace(source, tokens=digest(tokens_by_id(ids)))
    return found


def _same_files(sources: Collection[LockedSource]) -> bool:
    if len(sources) < 2:
        return True
    for names in _TABLES:
        if all(name in source.files for source in sources for name in names):
            return all(len({s.files[name].identity for s in sources}) == 1 for name in names)
    return False


def _tokens(source: LockedSource) -> str | None:
    if source.tokens is None and source.vocabulary is not None:
        return digest(source.vocabulary.tokens)
    return source.tokens
