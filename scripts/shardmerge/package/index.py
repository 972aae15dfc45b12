"""The small files of a model's folder that follow from its plan: config, index, checksums."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path, load_json, read_text, sha256_of
from shardmerge.base.hashing import sums_text
from shardmerge.base.weightfolders import component_of, shard_name
from shardmerge.plan.description import BuildDescription
from shardmerge.plan.paths import CHECKSUMS, PICTURE
from shardmerge.plan.records import MergeRecord, load_record
from shardmerge.sources.checkpoint_files import INDEX

PROVENANCE = "provenance.json"
CARD = "README.md"
#: Key of a provenance that tells of a checkpoint of any kind.
CHECKPOINT = "checkpoint"
#: What provenance does not tell of: it is about what went in and came out, not about its looks.
UNTOLD = frozenset({PROVENANCE, CARD, PICTURE})


def make_index(description: BuildDescription, index: str = INDEX) -> dict[str, Any]:
    """Return an index of a build: bytes of all tensors, and each tensor's file.

    Args:
        description: Of the build.
        index: Its name; it tells of the weights of the folder that it lies in.
    """
    folder = component_of(index)
    tensors = {
        name: (shard.file.rpartition("/")[2], tensor_bytes(*row))
        for shard in description.shards
        if component_of(shard.file) == folder
        for name, row in shard.tensors.items()
    }
    return {
        "metadata": {"total_size": sum(size for _, size in tensors.values())},
        "weight_map": {name: tensors[name][0] for name in sorted(tensors)},
    }


def index_text(index: Mapping[str, Any]) -> str:
    """Return an index as transformers writes it."""
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def load_records(paths: Iterable[Path]) -> dict[str, MergeRecord]:
    """Return the merge jobs' records by the name of the shard that they are about.

    Args:
        paths: ``SHARD.json`` each, where ``SHARD.safetensors`` is the shard; in a folder likewise
            if the shard is in one.

    Raises:
        UserError: If a file is not such a record.
    """
    records = {}
    for path in map(Path, paths):
        records[shard_name(path)] = load_record(path)
    return records


def checksums(folder: Path, files: Iterable[Path], records: Mapping[str, MergeRecord]) -> str:
    """Return the text of SHA256SUMS, as ``sha256sum --check`` reads it.

    Args:
        folder: The model's, which the names are relative to.
        files: Files in it, hashed here unless a record tells their hash; provenance.json among
            them must tell the same hashes of all but the card and its picture.
        records: The shards' records, by name.

    Raises:
        UserError: If a file lies elsewhere, cannot be read, or is not the one of provenance.json.
    """
    sums = {name: record.sha256 for name, record in records.items()}
    for path in map(Path, files):
        name = name_within(path, folder)
        if name not in sums:
            sums[name] = sha256_of(path)
    if PROVENANCE in sums:
        _compare_with_provenance(sums, folder / PROVENANCE)
    return sums_text(sums)


def replace_text(path: Path, text: str) -> None:
    """Write a file of a finished model anew, and its line in the SHA256SUMS beside it.

    Both are on disk before the first gets its name. Should the process be killed between the two
    names, SHA256SUMS is the older one, and the next run makes it again.

    Args:
        path: The file, directly in the model's folder.
        text: What it is to hold.

    Raises:
        UserError: If SHA256SUMS does not list it.
    """
    sums = path.parent / CHECKSUMS
    lines = read_text(sums, exact=True).splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.endswith(f"  {path.name}\n")]
    if len(places) != 1:
        raise UserError(
            f"does not list {path.name}", str(sums), "Delete it and run the workflow again."
        )
    with atomic_path(sums) as later, atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
        lines[places[0]] = sums_text({path.name: sha256_of(part)})
        later.write_text("".join(lines), encoding="utf-8")


def _compare_with_provenance(sums: Mapping[str, str], path: Path) -> None:
    outputs = load_json(path).get("outputs")
    rows = outputs if isinstance(outputs, dict) else {}
    told = {name: row.get("sha256") for name, row in rows.items() if isinstance(row, dict)}
    for name in sorted({*sums, *told} - UNTOLD):
        if sums.get(name) != told.get(name):
            raise UserError(
                f"{path.name} tells another SHA-256 of it ({told.get(name)}) than it has "
                f"({sums.get(name)})",
                str(path.parent / name),
                f"It changed meanwhile: delete {str(path)!r} and run the workflow again.",
            )


def name_within(path: Path, folder: Path) -> str:
    """Return a file's name relative to a folder, with forward slashes.

    Raises:
        UserError: If it lies elsewhere.
    """
    try:
        return path.absolute().relative_to(folder.absolute()).as_posix()
    except ValueError:
        raise UserError(f"does not lie in the model's folder {str(folder)!r}", str(path)) from None
