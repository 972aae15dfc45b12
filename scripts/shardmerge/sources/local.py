"""Sources in local folders: locked, and checked against their lock, by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import load_json, parse_object, read_text
from shardmerge.base.identities import Identities
from shardmerge.base.safetensors import read_header
from shardmerge.sources.checkpoint_files import (
    CONFIG,
    INDEX,
    TEMPLATES,
    adapter_files,
    model_files,
    parse_weight_map,
    tensor_table,
    weight_files,
)
from shardmerge.sources.lock import LockedSource

#: What to do about weights that are pickled.
CONVERT = (
    "Its weights are pickled. Write `allow_pickle: true` into the configuration and run "
    "`snakemake convert`, which writes them as safetensors without running code that is in them."
)


def lock_folder(folder: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a model in a local folder.

    Args:
        folder: It holds config.json and safetensors files, with or without an index.
        reference: The model as the recipe names it, for messages.
        identities: Cache of content identities.

    Raises:
        UserError: If it is not a model, has only pickles, or its index and files disagree.
    """
    where, names = _look(folder, reference)
    weight_map = _weight_map(folder, where) if INDEX in names else None
    weights = weight_files(names, weight_map, where, CONVERT)
    if CONFIG not in names:
        raise UserError(f"has no {CONFIG}, so what kind of model it is cannot be told", where)
    chosen = model_files(names, weights)
    return _source("model", folder, where, CONFIG, chosen, weights, weight_map, identities)


def lock_adapter(folder: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a LoRA adapter in a local folder.

    Args:
        folder: It holds adapter_config.json and adapter_model.safetensors.
        reference: The adapter as the recipe names it, for messages.
        identities: Cache of content identities.

    Raises:
        UserError: If a file is missing or broken, or it has only a pickle.
    """
    where, names = _look(folder, reference)
    chosen = adapter_files(names, where, CONVERT)
    return _source("adapter", folder, where, chosen[0], chosen, chosen[1:], None, identities)


def check_folder(
    folder: Path, locked: LockedSource, reference: str, lock: str, identities: Identities
) -> None:
    """Check that a folder still holds what its lock says.

    Raises:
        UserError: If a file is gone or has other content; names the first.
    """
    for name, file in locked.files.items():
        path = folder / name
        what = None
        if not path.is_file():
            what = "is gone"
        elif path.stat().st_size != file.size:
            what = f"has {path.stat().st_size} bytes where the lock has {file.size}"
        elif not identities.of(path).is_like(file):
            what = "has another content than when it was locked"
        if what:
            raise UserError(
                f"model {reference!r}: {str(path)!r} {what}",
                lock,
                "Restore the file, or run `snakemake lock` to lock the model as it is now.",
            )
    identities.save()


def _weight_map(folder: Path, where: str) -> dict[str, str]:
    text = read_text(folder / INDEX)
    return parse_weight_map(parse_object(text, str(folder / INDEX)), where, text=text)


def auxiliary_files(folder: Path, weights: Iterable[str]) -> list[str]:
    """Return the small files of a model: configuration, tokenizer, licence; not these weights."""
    return [name for name in model_files(_look(folder, str(folder))[1], ()) if name not in weights]


def _look(folder: Path, reference: str) -> tuple[str, list[str]]:
    """Return what to say in errors, and a folder's files as a repository would name them."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}", reference)
    where = str(folder) if reference == str(folder) else f"{reference} in {str(folder)!r}"
    paths = [*folder.iterdir(), *folder.glob(f"{TEMPLATES}*")]
    return where, sorted(p.relative_to(folder).as_posix() for p in paths if p.is_file())


def _source(
    role: str,
    folder: Path,
    where: str,
    config: str,
    names: list[str],
    weights: list[str],
    weight_map: Mapping[str, str] | None,
    identities: Identities,
) -> LockedSource:
    headers = {name: read_header(folder / safe_name(name, folder, where)) for name in weights}
    tensors = tensor_table(headers, weight_map, where)
    files = {safe_name(name, None, where): identities.of(folder / name) for name in names}
    identities.save()
    return LockedSource(
        kind="local",
        repo=None,
        revision=None,
        commit=None,
        config=load_json(folder / config),
        files=files,
        tensors=tensors,
        role=role,
    )
