"""What is locked of a source, wherever it lies: its files, its configuration, its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardmerge.base.claims import Say
from shardmerge.base.errors import UserError
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import parse_object
from shardmerge.base.identities import Identities
from shardmerge.recipe.references import Reference
from shardmerge.sources.any_checkpoint import (
    checkpoint_files,
    checkpoint_table,
    checkpoint_weights,
    single_weights,
    weights_beside,
)
from shardmerge.sources.checkpoint_files import (
    BY_NAMES,
    CONFIG,
    DOWNLOAD,
    DOWNLOAD_FILE,
    FIND,
    INDEX,
    adapter_files,
    folder_weights,
    follows_index,
    model_files,
    parse_weight_map,
    tensor_table,
    weight_files,
)
from shardmerge.sources.hub_store import HubStore
from shardmerge.sources.local import FileStore, FolderStore
from shardmerge.sources.lock import LockedSource, LockedTensor
from shardmerge.sources.store import Store, StoreContext


def lock_source(store: Store, role: str) -> LockedSource:
    """Return the lock of a source as it is now: nothing is read but headers and small texts.

    Args:
        store: Where it lies.
        role: ``model``, ``adapter`` or ``checkpoint``.

    Raises:
        UserError: If it cannot be had, is not such a thing in safetensors files, or its index and
            files disagree.
    """
    return _LOCKED_BY[role](store)


def lock_folder(folder: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a model in a local folder.

    Args:
        folder: It holds config.json and safetensors files, with or without an index.
        reference: The model as the recipe names it, for messages.
        identities: Cache of content identities.
    """
    return lock_source(_folder(folder, reference, identities), "model")


def lock_adapter(folder: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a LoRA adapter in a local folder; arguments as of ``lock_folder``."""
    return lock_source(_folder(folder, reference, identities), "adapter")


def lock_checkpoint(place: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a checkpoint: a file or a folder; arguments as of ``lock_folder``."""
    kind = FileStore if place.is_file() else FolderStore
    context = StoreContext(Path(), identities)
    return lock_source(kind(str(place), Reference(reference), context), "checkpoint")


def lock_hub(
    repo: str, revision: str | None, *, role: str = "model", progress: Say | None = None
) -> LockedSource:
    """Return the lock of a model or adapter on the Hub.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
        role: ``model`` or ``adapter``.
        progress: Receives a line now and then.
    """
    context = StoreContext(Path(), Identities(Path(), keep=False), progress)
    return lock_source(HubStore(repo, Reference(repo, revision), context), role)


def _folder(folder: Path, reference: str, identities: Identities) -> FolderStore:
    return FolderStore(str(folder), Reference(reference), StoreContext(Path(), identities))


def _lock_model(store: Store) -> LockedSource:
    names = store.names()
    weight_map = _weight_map(store) if follows_index(names) else None
    weights = weight_files(names, weight_map, store.where, store.pickled or FIND)
    if CONFIG not in names:
        message = f"has no {CONFIG}, so what kind of model it is cannot be told"
        raise UserError(message, store.where, BY_NAMES)
    weights += folder_weights(names, store.where)
    return _locked(store, "model", CONFIG, model_files(names, weights), weights, weight_map)


def _lock_adapter(store: Store) -> LockedSource:
    names = adapter_files(store.names(), store.where, store.pickled or DOWNLOAD)
    return _locked(store, "adapter", names[0], names, names[1:], None)


def _lock_checkpoint(store: Store) -> LockedSource:
    names = store.names()
    if store.is_one_file:
        weights = single_weights(names, store.where, store.pickled or DOWNLOAD_FILE)
    else:
        weights = checkpoint_weights(names, lambda name: _json(store, name), store.where)
    files = checkpoint_files(names, weights)
    alone = store.is_one_file
    tensors = checkpoint_table(store.headers(weights), store.where, alone=alone)
    lost = () if alone else tuple(weights_beside(names, weights))
    made = _made(store, "checkpoint", {}, files, tensors)
    return replace(made, left_out=lost, one_file=alone)


#: Who locks what by its role in a recipe.
_LOCKED_BY = {"model": _lock_model, "adapter": _lock_adapter, "checkpoint": _lock_checkpoint}


def _json(store: Store, name: str) -> Any:
    return parse_object(_text(store, name), store.told_of(name))


def _weight_map(store: Store) -> dict[str, str]:
    text = _text(store, INDEX)
    return parse_weight_map(parse_object(text, store.told_of(INDEX)), store.where, text=text)


def _locked(
    store: Store,
    role: str,
    config: str,
    names: list[str],
    weights: list[str],
    weight_map: Mapping[str, str] | None,
) -> LockedSource:
    tensors = tensor_table(store.headers(weights), weight_map, store.where)
    return _made(store, role, _json(store, config), names, tensors)


def _made(
    store: Store,
    role: str,
    config: Mapping[str, Any],
    names: list[str],
    tensors: Mapping[str, LockedTensor],
) -> LockedSource:
    files = {safe_name(name, None, store.where): store.identity(name) for name in names}
    store.context.identities.save()
    return LockedSource(
        store.kind,
        *store.origin(),
        config=config,
        files=files,
        tensors=tensors,
        role=role,
    )


def _text(store: Store, name: str) -> str:
    try:
        return store.read_now(name).decode()
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", store.told_of(name), "Save it as UTF-8.") from None
