"""Which repositories of the Hub a card may name as what a package was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shardmerge.plan.description import DescribedSource
from shardmerge.recipe.references import parse_reference

#: What no name of a repository has.
_NEVER = re.compile(r"--|\.\.")


def hub_name(reference: str, sources: Mapping[str, DescribedSource]) -> str | None:
    """Return the Hub's name of a model, None if it has none: a folder, or another document.

    Args:
        reference: As the recipe names it.
        sources: What the recipe is made of, by reference.
    """
    parsed = parse_reference(reference)
    if (source := sources.get(parsed.model)) is None:
        return None
    if name := source.store.hub_name(source.origin):
        return name
    known = parsed.is_hub_name and not _NEVER.search(parsed.path)
    return parsed.path if known else None
