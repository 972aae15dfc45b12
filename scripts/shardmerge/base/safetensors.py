"""Headers of safetensors files, treated as hostile until they are checked.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian length, JSON, data).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardmerge.base.dtypes import DTYPES, tensor_bytes
from shardmerge.base.errors import UserError, shortened
from shardmerge.base.filenames import safe_tensor
from shardmerge.base.jsontext import parse_json

#: The safetensors library's own limit.
MAX_HEADER_BYTES = 100_000_000
#: How the text begins that Git LFS leaves in place of a large file ("version https://...").
_LFS = b"version "
#: Tensors of a file; the largest models have fewer in all their files.
MAX_TENSORS = 200_000
#: Dimensions of a tensor: torch takes 64, models use five.
MAX_DIMENSIONS = 16


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
    if prefix.startswith(_LFS):
        raise UserError(
            "is a Git LFS pointer, which only names the weights",
            where,
            "Run `git lfs pull` in the model's folder.",
        )
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
    if raw.count(b"{", 8) > MAX_TENSORS:
        raise UserError(f"has a header of more than {MAX_TENSORS} tensors", where)
    table = parse_json(raw[8:], where, "has a header that is not JSON", unique=True)
    if not isinstance(table, dict):
        raise UserError("has a header that is not a table of tensors", where)
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError("has a __metadata__ that is not a table of texts", where)
    entries = {
        safe_tensor(name, where, any_name=True): _entry(name, row, len(raw), where)
        for name, row in table.items()
    }
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


def _entry(name: str, row: object, data_start: int, where: str) -> TensorEntry:
    try:
        code, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise UserError(f"tensor {name!r} lacks dtype, shape or data_offsets", where) from None
    if not isinstance(code, str) or code not in DTYPES:
        raise UserError(f"tensor {name!r} has the unknown dtype {shortened(code)}", where)
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if len(numbers) > MAX_DIMENSIONS + 2:
        raise UserError(f"tensor {name!r} has {len(shape)} dimensions", where)
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
