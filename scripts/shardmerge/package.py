"""The small files of a model's folder that follow from its plan: config, index, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardmerge.dtypes import DTYPES
from shardmerge.errors import UserError
from shardmerge.files import load_json
from shardmerge.planning import description_path

INDEX = "model.safetensors.index.json"
#: What transformers calls a model's dtype, newest name first.
_DTYPE_KEYS = ("dtype", "torch_dtype")
_SPACE = re.compile(r"[ \t\n\r]*")


def load_description(name: str) -> Mapping[str, Any]:
    """Return the description of a build, which the plan made.

    Args:
        name: The build's digest.

    Raises:
        UserError: If there is none.
    """
    return load_json(description_path(name))


def set_dtype(config: str, dtype: str | None, where: str) -> str:
    """Return the text of a config.json with the model's dtype set and not a byte else changed.

    Args:
        config: The text.
        dtype: Name such as ``float16``, or None to leave the text as it is.
        where: What to say in errors.

    Raises:
        UserError: If it is not a JSON object.
    """
    spans = _members(config, where)
    if dtype is None:
        return config
    value = json.dumps(dtype)
    found = [span for key, *span in spans if key in _DTYPE_KEYS]
    if not found:
        return _insert(config, spans, f'"{_DTYPE_KEYS[0]}": {value}')
    for begin, end in reversed(found):
        config = config[:begin] + value + config[end:]
    return config


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Return the bytes of a tensor, given as a description writes it."""
    return math.prod(shape) * DTYPES[dtype].size


def make_index(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the index of a build's shards: bytes of all tensors, and each tensor's file."""
    tensors = {
        name: (shard["file"], tensor_bytes(*row))
        for shard in description["shards"]
        for name, row in shard["tensors"].items()
    }
    return {
        "metadata": {"total_size": sum(size for _, size in tensors.values())},
        "weight_map": {name: tensors[name][0] for name in sorted(tensors)},
    }


def index_text(index: Mapping[str, Any]) -> str:
    """Return an index as transformers writes it."""
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def load_records(paths: Iterable[Path]) -> dict[str, Mapping[str, Any]]:
    """Return the merge jobs' records by the name of the shard that they are about.

    Args:
        paths: ``SHARD.json`` each, where ``SHARD.safetensors`` is the shard.

    Raises:
        UserError: If a file is not such a record.
    """
    records = {}
    for path in map(Path, paths):
        record = load_json(path)
        sha256, size = record.get("sha256"), record.get("size")
        if not isinstance(size, int) or not re.fullmatch("[0-9a-f]{64}", str(sha256)):
            raise UserError("is not the record of a merge job", str(path))
        records[f"{path.stem}.safetensors"] = record
    return records


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None


def checksums(folder: Path, files: Iterable[Path], records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of SHA256SUMS, as ``sha256sum --check`` reads it.

    Args:
        folder: The model's, which the names are relative to.
        files: Files in it, hashed here unless a record tells their hash.
        records: The shards' records, by name.

    Raises:
        UserError: If a file lies elsewhere or cannot be read.
    """
    sums = {name: record["sha256"] for name, record in records.items()}
    for path in map(Path, files):
        name = name_within(path, folder)
        if name not in sums:
            sums[name] = sha256_of(path)
    return "".join(_checksum_line(name, sums[name]) for name in sorted(sums))


def name_within(path: Path, folder: Path) -> str:
    """Return a file's name relative to a folder, with forward slashes.

    Raises:
        UserError: If it lies elsewhere.
    """
    try:
        return path.absolute().relative_to(folder.absolute()).as_posix()
    except ValueError:
        raise UserError(f"does not lie in the model's folder {str(folder)!r}", str(path)) from None


def _checksum_line(name: str, sha256: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"


def _members(text: str, where: str) -> list[tuple[str, int, int]]:
    """Return key, and begin and end of the value, of every member of a JSON object's text."""
    try:
        if not isinstance(json.loads(text), dict):
            raise UserError("is not a JSON object", where)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})", where) from None
    decode = json.JSONDecoder().raw_decode
    spans = []
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        key, place = decode(text, place)
        begin = _skip(text, _skip(text, place) + 1)
        end = decode(text, begin)[1]
        spans.append((key, begin, end))
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return spans


def _insert(text: str, spans: list[tuple[str, int, int]], member: str) -> str:
    """Return the text of a JSON object with a member more, set as the last one is."""
    if not spans:
        brace = text.index("{") + 1
        return f"{text[:brace]}{member}{text[brace:]}"
    end = spans[-1][2]
    brace = text.index("{") + 1
    indentation = text[brace : _skip(text, brace)]
    return f"{text[:end]},{indentation}{member}{text[end:]}"


def _skip(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()
