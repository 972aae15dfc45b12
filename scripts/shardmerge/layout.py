"""Which output tensor goes into which shard."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from shardmerge.dtypes import DTYPES
from shardmerge.errors import UserError
from shardmerge.lock import LockedTensor
from shardmerge.spec import OutputTensor

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def tensor_bytes(tensor: OutputTensor) -> int:
    """Return the bytes that a tensor takes in its file."""
    return math.prod(tensor.shape) * DTYPES[tensor.dtype].size


def group(
    tensors: list[OutputTensor],
    reference: Mapping[str, LockedTensor],
    max_shard_size: int | None,
) -> list[list[OutputTensor]]:
    """Return the tensors of every shard, in the order of the shards and of their data.

    Args:
        tensors: All tensors of the model.
        reference: Tensor table of the source whose layout is followed.
        max_shard_size: Bytes of data that a shard may have (a larger tensor gets one of its own),
            or None to put tensors together as the reference's files do.
    """
    ordered = sorted(tensors, key=lambda t: _place(t.name, reference))
    shards: list[list[OutputTensor]] = []
    last, size = None, 0
    for tensor in ordered:
        file = reference[tensor.name].file if tensor.name in reference else ""
        bytes_ = tensor_bytes(tensor)
        fits = file == last if max_shard_size is None else size + bytes_ <= max_shard_size
        if not shards or not fits:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        last, size = file, size + bytes_
    return shards


def shard_names(count: int, stem: str = "model") -> list[str]:
    """Return the shards' file names as transformers expects them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def parse_size(value: str | int | None) -> int | None:
    """Return a size such as ``5GB`` or ``500MiB`` in bytes.

    Raises:
        UserError: If it is not a size.
    """
    if value is None or isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B?)", value.strip(), re.IGNORECASE)
    unit = (
        (match[2].upper() if match[2].upper().endswith("B") else match[2].upper() + "B")
        if (match and match[2])
        else ""
    )
    if not match or (unit not in _UNITS and unit != "B"):
        raise UserError(f"{value!r} is not a size", hint="Write for example `5GB` or `500MiB`.")
    return int(float(match[1]) * _UNITS.get(unit, 1))


def _place(name: str, reference: Mapping[str, LockedTensor]) -> tuple[str, int, str]:
    found = reference.get(name)
    return (found.file, found.begin, name) if found else ("", 0, name)
