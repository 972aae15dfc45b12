"""A finished GGUF export: read back, compared with its model, recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.export.gguf_errors import (
    Heads,
    ModelTensors,
    check_errors,
    compare_weights,
    names_in_model,
)
from shardmerge.export.gguf_metadata import ModelFiles, check_metadata, compare_metadata
from shardmerge.export.record import ExportFile, ExportRecord
from shardmerge.export.tools import LlamaCpp


def check_gguf(
    folder: Path, variant: str, model: Path, build: str, tools: LlamaCpp
) -> ExportRecord:
    """Compare an export with the model that it was made from.

    Args:
        folder: Of the export's files.
        variant: Its type.
        model: The model's folder.
        build: Digest of the model's build.
        tools: What made it.

    Raises:
        UserError: If it is damaged, or not what the model is.
    """
    _find_library(tools)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise UserError("has no GGUF files", str(folder))
    readers = [_read(file) for file in files]
    found = {key: field.contents() for key, field in readers[0].fields.items()}
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    _check_whole(found, len(files), len(tensors), str(folder))
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in tensors}
    seen = compare_metadata(found, shapes, ModelFiles.of(model))
    check_metadata(seen, str(files[0]))
    own = ModelTensors(model)
    architecture = found["general.architecture"]
    layers = int(found.get(f"{architecture}.block_count", 0))
    names = names_in_model(list(shapes), architecture, layers, own)
    errors = compare_weights(readers, own, names, _heads(found, architecture))
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    check_errors(errors, bits, str(folder))
    return ExportRecord(
        form="gguf",
        variant=variant,
        build=build,
        files={file.name: ExportFile(sha256=sha256_of(file), size=file.stat().st_size)
               for file in files},
        tensors={"export": len(tensors), "model": len(own)},
        bits_per_weight=round(bits, 4),
        metadata=dict(sorted(seen.right.items())),
        not_checked=dict(sorted(seen.unknown.items())),
        errors=errors,
        tools=tools.versions(),
    )  # fmt: skip


def _find_library(tools: LlamaCpp) -> None:
    """Let the package ``gguf`` be found: installed, or else beside the converter."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        library = tools.library()
        if library is None:
            raise UserError(
                "needs the package gguf, which is not installed",
                "the check of GGUF files",
                "Install requirements-gguf.txt.",
            ) from None
        sys.path.append(str(library))


def _read(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(str(file))
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"is no GGUF file that can be read ({error})", str(file)) from None


def _check_whole(found: Mapping[str, Any], files: int, tensors: int, where: str) -> None:
    """Compare the numbers of files and tensors with what the first file says of them."""
    for key, count in (("split.count", files), ("split.tensors.count", tensors)):
        told = found.get(key)
        if told is not None and int(told) != count:
            raise UserError(f"has {count}, and {key} in the first file is {told}", where)


def _heads(found: Mapping[str, Any], architecture: str) -> Heads:
    queries = found.get(f"{architecture}.attention.head_count", 0)
    keys = found.get(f"{architecture}.attention.head_count_kv", queries)
    return Heads(*(n if isinstance(n, int) else 0 for n in (queries, keys)))
