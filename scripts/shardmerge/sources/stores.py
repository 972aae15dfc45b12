"""All kinds of sources. Another one is a module with its ``Store``, and its name in this list."""

from __future__ import annotations

from shardmerge.base.errors import UserError
from shardmerge.sources.hub_store import HubStore
from shardmerge.sources.local import FileStore, FolderStore
from shardmerge.sources.store import Store

#: Asked in this order which of them a location belongs to.
STORES: tuple[type[Store], ...] = (FolderStore, FileStore, HubStore)


def store_type(kind: str) -> type[Store]:
    """Return the kind of source that locks call so."""
    return kinds()[kind]


def kinds() -> dict[str, type[Store]]:
    """Return all kinds of sources by their names in locks."""
    return {store.kind: store for store in STORES}


def claimant(location: str, *, bare_names: bool = True) -> type[Store] | None:
    """Return the kind of source that a location belongs to, None if to none.

    Args:
        location: As the recipe or the configuration writes it.
        bare_names: Whether it may be one of a kind whose locations look like those of folders.
    """
    candidates = (s for s in STORES if bare_names or not s.bare_names)
    return next((store for store in candidates if store.claims(location)), None)


def remote_store(repo: str) -> type[Store]:
    """Return the kind of source that fetches from there.

    Args:
        repo: Of an ``Origin``.

    Raises:
        UserError: If none does.
    """
    for store in STORES:
        if store.remote and store.pins(repo):
            return store
    raise UserError("is no place that files are fetched from", repo)
