"""Quantised tensors for tests, and reading them through the boxes that formats ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from shardmerge import formats
from shardmerge.base.dtypes import DTYPES
from shardmerge.formats.boxes import row_spans, runs
from shardmerge.formats.interface import LogicalTensor
from shardmerge.formats.values import stored_type

CODES = {getattr(torch, d.name): d.code for d in DTYPES.values() if d.bits % 8 == 0}


class Entry(NamedTuple):
    """A row of a tensor table."""

    dtype: str
    shape: tuple[int, ...]


def table_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    """Return the table that headers would have."""
    return {name: Entry(CODES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's bytes as they lie in a file."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def contents_of(tensors: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, bytes]:
    """Return the bytes of some tensors."""
    return {name: bytes_of(tensors[name]).tobytes() for name in names}


def read(tensors: Mapping[str, torch.Tensor], one: LogicalTensor, first: int, count: int) -> Any:
    """Return the blocks of a range of rows, gathered from bytes as an engine does it."""
    blocks = {}
    for role, box in formats.rows(one, first, count).items():
        ref = one.parts[role]
        flat = bytes_of(tensors[ref.tensor]).view(stored_type(ref.dtype))
        pieces = [flat[a:b] for a, b in runs(ref.shape, box)]
        blocks[role] = np.concatenate(pieces).reshape([b - a for a, b in box])
    return blocks


def decoded(
    tensors: Mapping[str, torch.Tensor], one: LogicalTensor, chunk: int | None = None
) -> torch.Tensor:
    """Return a logical tensor, decoded ``chunk`` rows at a time."""
    out = []
    for begin in range(0, one.rows, chunk or one.rows):
        wanted = min(chunk or one.rows, one.rows - begin)
        for first, count in row_spans(one, begin, wanted):
            block = formats.decode(one, read(tensors, one, first, count), first, count)
            assert block.dtype == np.float32 and block.shape == (count, one.columns)
            out.append(block)
    return torch.from_numpy(np.concatenate(out)).reshape(one.shape)


def logical_of(
    tensors: Mapping[str, torch.Tensor], config: dict | None = None, **side_files: dict
) -> dict[str, LogicalTensor]:
    """Return the logical tensors of a model with these tensors and files."""
    table = table_of(tensors)
    files = {f"{name}.json": content for name, content in side_files.items()}
    reading = formats.detect(config or {}, files, table, "model")
    return reading.logical(table, contents_of(tensors, reading.needed(table)))


def weight_of(tensors: Mapping[str, torch.Tensor], config: dict | None = None) -> torch.Tensor:
    """Return the only logical tensor, decoded whole; in uneven pieces it is the same."""
    (one,) = logical_of(tensors, config).values()
    whole = decoded(tensors, one)
    for chunk in (1, 7, 33):
        pieces = decoded(tensors, one, chunk)
        assert same(pieces, whole), f"{chunk} rows at a time differ"
    return whole


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two float32 tensors are equal bit for bit, NaN being one value."""
    if a.dtype != torch.float32 or b.dtype != torch.float32 or a.shape != b.shape:
        return False
    alike = a.contiguous().view(torch.int32) == b.contiguous().view(torch.int32)
    return bool((alike | (a.isnan() & b.isnan())).all())


def quantised(method: str, **settings: object) -> dict:
    """Return a config.json that says how a model is quantised."""
    return {"quantization_config": {"quant_method": method, **settings}}


def scheme(bits: int, kind: str = "int", strategy: str = "group", **more: object) -> dict:
    """Return a config.json of compressed-tensors with one group."""
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, **more}
    return quantised("compressed-tensors", config_groups={"group_0": {"weights": weights}})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal float32 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, dtype: torch.dtype = torch.int32, seed: int = 0) -> torch.Tensor:
    """Return whole numbers over all of the range of a type."""
    count = int(np.prod(shape)) * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return F8_E4M3 numbers without NaN."""
    raw = integers(*shape, dtype=torch.uint8, seed=seed)
    return torch.where(raw & 127 == 127, raw - 1, raw).view(torch.float8_e4m3fn)
