"""Shards of compressed-tensors: one file is quantised at a time, matrix by matrix.

compressed-tensors computes scales, rounds and packs; its functions are called as llm-compressor's
``model_free_ptq`` calls them for scales from the smallest and largest value, and make the same
bytes. The shard is written as it is computed, with one matrix in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from shardmerge.base.dtypes import DTYPES, tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path
from shardmerge.base.safetensors import Header, read_header, write_header
from shardmerge.export.compressed_library import compress, library_scheme
from shardmerge.export.schemes import ExportScheme
from shardmerge.export.selection import Selection, TensorRow, fused_with

if TYPE_CHECKING:
    import torch

_PIECE = 8 << 20
_CODES = {kind.name: kind.code for kind in DTYPES.values()}


def compress_shard(
    source: Path, others: Sequence[Path], selection: Selection, scheme: ExportScheme, output: Path
) -> None:
    """Write the shard of an export.

    Args:
        source: The model's shard.
        others: Its shards that hold what shares an overall scale with some of this one.
        selection: Which weights of the model are quantised.
        scheme: How.
        output: The file.

    Raises:
        UserError: If a tensor that is needed is in none of the files.
    """
    header = read_header(source)
    chosen = set(selection.weights)
    names = sorted(set(header.tensors) & chosen)
    files = {n: path for path in (*others, source) for n in read_header(path).tensors}
    entries = {name: header.tensors[name] for name in names}
    made = {n: _named(n, _foreseen(e.dtype, e.shape, scheme)) for n, e in entries.items()}
    kept = {n: (e.dtype, e.shape) for n, e in header.tensors.items() if n not in made}
    rows = kept | {name: row for table in made.values() for name, row in table.items()}
    # wide types first, so that every tensor is aligned
    order = sorted(rows, key=lambda name: (-DTYPES[rows[name][0]].bits, name))
    head = write_header([(name, *rows[name]) for name in order], {"format": "pt"})
    with atomic_path(output) as part:
        part.write_bytes(head)
        places = _places(head, rows, order)
        os.truncate(part, max((end for _, end in places.values()), default=len(head)))
        with open(part, "r+b") as file:
            _copy(source, header, kept, places, file)
            for name in names:
                fused = fused_with(name) if scheme.shared else ()
                shared = [_largest(files, p) for p in fused if p in chosen]
                tensors = compress(_read(files[name], name), scheme, shared)
                _write(file, name, tensors, made[name], places)


def _places(
    head: bytes, rows: Mapping[str, TensorRow], order: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return where the bytes of each tensor begin and end in a file with this header."""
    places, position = {}, len(head)
    for name in order:
        end = position + tensor_bytes(*rows[name])
        places[name] = position, end
        position = end
    return places


def _copy(
    source: Path,
    header: Header,
    kept: Iterable[str],
    places: Mapping[str, tuple[int, int]],
    file: IO[bytes],
) -> None:
    """Copy the tensors that stay as they are."""
    with open(source, "rb") as reader:
        for name in kept:
            entry = header.tensors[name]
            reader.seek(entry.begin)
            file.seek(places[name][0])
            left = entry.end - entry.begin
            while left:
                piece = reader.read(min(left, _PIECE))
                if not piece:
                    raise UserError(f"ends within tensor {name!r}", str(source))
                file.write(piece)
                left -= len(piece)


def _write(
    file: IO[bytes],
    weight: str,
    tensors: Mapping[str, torch.Tensor],
    foreseen: Mapping[str, TensorRow],
    places: Mapping[str, tuple[int, int]],
) -> None:
    """Write what was made of a weight where it belongs."""
    import torch

    found = _named(weight, _rows(tensors))
    if found != foreseen:
        raise UserError(
            f"became {sorted(found.items())}, not {sorted(foreseen.items())} as foreseen",
            f"tensor {weight!r}",
            "This compressed-tensors is not the one that the export was tested with.",
        )
    for name, tensor in tensors.items():
        file.seek(places[_full(weight, name)][0])
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _rows(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorRow]:
    return {
        name: (_CODES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def _named(weight: str, rows: Mapping[str, TensorRow]) -> dict[str, TensorRow]:
    return {_full(weight, name): row for name, row in rows.items()}


def _full(weight: str, name: str) -> str:
    return f"{weight.rpartition('.')[0]}.{name}"


@cache
def _foreseen(dtype: str, shape: tuple[int, ...], scheme: ExportScheme) -> dict[str, TensorRow]:
    """Return dtype code and shape of all that is made of a weight, without its values."""
    import torch

    # on its meta device the library does not pack zeros
    device = "meta" if library_scheme(scheme).weights.symmetric else "cpu"
    weight = torch.zeros(shape, dtype=getattr(torch, DTYPES[dtype].name), device=device)
    return _rows(compress(weight, scheme, []))


def _read(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return file.get_tensor(name)


def _largest(files: Mapping[str, Path], name: str) -> torch.Tensor:
    """Return the largest magnitude of a weight of any shard."""
    if name not in files:
        raise UserError("is in none of the shards that were given", f"tensor {name!r}")
    return _read(files[name], name).abs().max()
