"""safetensors headers, read as the hostile input that they are until shown harmless.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON, data).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.dtypes import DTYPES, tensor_bytes
from shardmerge.errors import UserError

#: The safetensors library's own limit.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a safetensors file: dtype code, shape, and byte range in the whole file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header.

    Args:
        tensors: By name, in the order of their data.
        metadata: The ``__metadata__`` strings.
        size: Bytes before the data.
        digest: SHA-256 of those bytes.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    size: int
    digest: str


def header_length(prefix: bytes, file_size: int, where: str) -> int:
    """Return the JSON's length in bytes from a file's first 8 bytes.

    Raises:
        UserError: If it is absurd or larger than the file.
    """
    if len(prefix) < 8:
        raise UserError("is too short to be a safetensors file", where)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise UserError(f"declares a header of {length} bytes, more than any real one", where)
    if 8 + length > file_size:
        raise UserError(
            f"declares a header of {length} bytes, but the file has only {file_size}",
            where,
            "The file is cut off, or is not a safetensors file.",
        )
    return length


def parse_header(raw: bytes, file_size: int, where: str) -> Header:
    """Return the header in ``raw`` (length prefix and JSON), checked against the file's size.

    Raises:
        UserError: If the JSON is broken, a dtype unknown, a range outside the file, overlapping,
            or not of the size that dtype and shape make.
    """
    try:
        table = json.loads(raw[8:], object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"has a header that is not JSON ({error})", where) from None
    if not isinstance(table, dict):
        raise UserError("has a header that is not a table of tensors", where)
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise UserError("has a __metadata__ that is not a table", where)
    entries = {name: _entry(name, row, len(raw), where) for name, row in table.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end, item[0])))
    position = len(raw)
    for name, entry in ordered.items():
        if entry.begin < position:
            raise UserError(f"has overlapping data at tensor {name!r}", where)
        if entry.end > file_size:
            raise UserError(
                f"tensor {name!r} ends at byte {entry.end}, but the file has {file_size}",
                where,
                "The file is cut off: fetch or copy it again.",
            )
        position = entry.end
    return Header(ordered, metadata, len(raw), hashlib.sha256(raw).hexdigest())


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of a local safetensors file.

    Raises:
        UserError: As ``parse_header``, or if the file cannot be read.
    """
    where = str(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = header_length(prefix, size, where)
            return parse_header(prefix + file.read(length), size, where)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where) from None


def write_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Return the header of a file that holds these tensors, one after the other.

    Args:
        tensors: (name, dtype code, shape) in the order of the data.
        metadata: The ``__metadata__`` strings.

    Returns:
        Length prefix and JSON, padded to 8 bytes, laid out as the safetensors library writes it.
    """
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + tensor_bytes(dtype, shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _entry(name: str, row: object, data_start: int, where: str) -> TensorEntry:
    try:
        code, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise UserError(f"tensor {name!r} lacks dtype, shape or data_offsets", where) from None
    if code not in DTYPES:
        raise UserError(f"tensor {name!r} has the unknown dtype {code!r}", where)
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise UserError(f"tensor {name!r} has a shape or range that is not whole numbers", where)
    if end - begin != tensor_bytes(code, shape):
        raise UserError(
            f"tensor {name!r} has {end - begin} bytes, but {code}{shape} needs "
            f"{tensor_bytes(code, shape)}",
            where,
        )
    if math.prod(shape) * DTYPES[code].bits % 8:
        raise UserError(f"tensor {name!r} of {code} does not fill whole bytes", where)
    return TensorEntry(code, tuple(shape), data_start + begin, data_start + end)


def safe_name(name: str, folder: str | os.PathLike[str] | None, where: str) -> str:
    """Return a file name that an index gives, shown to stay within its folder.

    Args:
        name: Relative path with forward slashes.
        folder: Local folder that the file must lie in after links are followed, or None.
        where: What to say in errors.

    Raises:
        UserError: If it is absolute, has ``..``, a backslash or a control character, or leads out.
    """
    parts = name.split("/") if isinstance(name, str) else []
    bad = not parts or any(part in ("", ".", "..") for part in parts)
    if bad or "\\" in name or ":" in parts[0] or any(ord(c) < 32 for c in name):
        raise UserError(f"names a file {name!r} that is not a plain path within the model", where)
    if folder is not None:
        root, target = Path(folder).resolve(), (Path(folder) / name).resolve()
        if not target.is_relative_to(root) and not _hub_cache_blob(root, target):
            raise UserError(
                f"names a file {name!r} that is a link out of the model's folder", where
            )
    return name


def _hub_cache_blob(root: Path, target: Path) -> bool:
    """Whether the target is a blob of the Hugging Face cache that the root is a snapshot in."""
    return root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
