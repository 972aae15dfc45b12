"""Writes one file of LoRA factors from a file of updates, one module after the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from shardmerge.algebra.factorization import FactorModule, FactorRecord, FactorSpec, ModuleRecord
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path, fill_from
from shardmerge.base.safetensors import Header, read_header, write_header
from shardmerge.engine.aligned import aligned
from shardmerge.engine.buffers import torch_dtype
from shardmerge.engine.decompose import (
    Pair,
    balanced,
    concatenated,
    decompose,
    decompose_products,
    product_squares,
    rank_of,
    squared_error,
)
from shardmerge.engine.evaluate import round_into

_METADATA = {"format": "pt"}


class UpdateFile:
    """A file of updates, read one tensor at a time.

    Args:
        path: The file.

    Raises:
        UserError: If it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = read_header(path)

    def tensor(self, name: str, device: str = "cpu") -> torch.Tensor:
        """Return a tensor, read whole.

        Raises:
            UserError: If the file has none of that name.
        """
        entry = self.header.tensors.get(name)
        if entry is None:
            raise UserError(f"has no tensor {name!r}", str(self.path))
        memory = bytearray(entry.end - entry.begin)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fill_from(fd, self.path, entry.begin, memoryview(memory))
        finally:
            os.close(fd)
        if not memory:
            return torch.empty(entry.shape, dtype=torch_dtype(entry.dtype), device=device)
        flat = torch.frombuffer(memory, dtype=torch_dtype(entry.dtype))
        return flat.reshape(entry.shape).to(device)

    def pairs(self, module: FactorModule, device: str) -> list[Pair]:
        """Return factors whose products add up to a module's update, none if it is given whole."""
        found = []
        for number in range(module.products):
            b, a = (self.tensor(name, device) for name in module.factor_names(number))
            wide = torch.promote_types(b.dtype, torch.float32)
            found.append((b.to(wide), a.to(wide)))
        return [aligned(found, module)] if module.merge else found


@dataclass(frozen=True)
class _Made:
    record: ModuleRecord
    pair: Pair | None


def build_factors(
    spec: FactorSpec, update: Path, output: Path, *, threads: int = 1, device: str = "cpu"
) -> FactorRecord:
    """Write a file of factors; memory is that of the largest module.

    Args:
        spec: What it is.
        update: The file of updates.
        output: The file to write.
        threads: Of torch; bits may depend on them.
        device: Where singular values are computed.

    Raises:
        UserError: If an update is not finite, or the file is not as planned.
    """
    torch.set_num_threads(threads)
    updates = UpdateFile(update)
    records, rows = [], []
    with atomic_path(output) as part:
        data = part.with_name(part.name + ".data")
        try:
            with open(data, "xb") as file, torch.no_grad():
                for module in spec.modules:
                    made = make_factors(spec, module, updates, device)
                    records.append(made.record)
                    rows += _write(file, module, made.pair, spec.dtype)
                for tensor, name in spec.saved:
                    entry = updates.header.tensors[tensor]
                    rows.append((name, entry.dtype, entry.shape))
                    _copy(file, updates, tensor)
            sha256 = _assemble(part, data, write_header(rows, _METADATA))
        finally:
            data.unlink(missing_ok=True)
        size = part.stat().st_size
    return FactorRecord(spec=spec.digest, sha256=sha256, size=size, modules=tuple(records))


def make_factors(spec: FactorSpec, module: FactorModule, updates: UpdateFile, device: str) -> _Made:
    """Return a module's factors in their own type, and what is told of them.

    Raises:
        UserError: If the update holds infinite values or NaN.
    """
    if module.kind == "experts":
        return _experts(spec, module, updates, device)
    pairs = updates.pairs(module, device)
    matrix = None
    if not pairs:
        matrix = updates.tensor(module.tensor, device)
        matrix = matrix.t().contiguous() if module.transposed else matrix
    for tensor in [matrix] if matrix is not None else [x for pair in pairs for x in pair]:
        _check_finite(tensor, module, updates)
    return _single(spec, module, matrix, pairs)


def _single(
    spec: FactorSpec, module: FactorModule, matrix: torch.Tensor | None, pairs: Sequence[Pair]
) -> _Made:
    whole = concatenated(pairs) if matrix is None else matrix
    if spec.decomposition == "concatenate":
        norm, kept, rank = product_squares(whole) ** 0.5, (), len(whole[1])
        written = rank if norm or module.uniform else 0
        scale = _scale(spec, written)
        pair = whole[0] / scale, whole[1]
    else:
        if matrix is None:
            found = decompose_products(pairs, spec)
            shape = (len(whole[0]), whole[1].shape[1])
        else:
            found, shape = decompose(matrix, spec, module.name), tuple(matrix.shape)
        rank = rank_of(found, spec, shape)
        kept = tuple(found.values[:rank].double().tolist())
        written = min(spec.rank or rank, *shape) if module.uniform else rank
        norm, scale = found.squares**0.5, _scale(spec, written)
        pair = _padded(balanced(found, rank, scale), written)
    if not written:
        return _Made(ModuleRecord(name=module.name, rank=0, norm=norm, error=norm, values=()), None)
    pair = _rounded(pair, spec.dtype)
    error = squared_error(whole, *pair, scale) ** 0.5
    record = ModuleRecord(name=module.name, rank=written, norm=norm, error=error, values=kept)
    return _Made(record, pair)


def _scale(spec: FactorSpec, rank: int) -> float:
    """Return what peft multiplies the factors' product by."""
    return 1.0 if spec.alpha is None or not rank else spec.alpha / rank


def _experts(spec: FactorSpec, module: FactorModule, updates: UpdateFile, device: str) -> _Made:
    """Return the factors of fused experts, put together as peft has them.

    The rows of a go expert by expert, the columns of b rank by rank.
    """
    whole = updates.tensor(module.tensor)
    _check_finite(whole, module, updates)
    alike = FactorModule(name=module.name, tensor=module.tensor, uniform=True)
    made = []
    for matrix in whole:
        matrix = matrix.t().contiguous() if module.transposed else matrix
        made.append(_single(spec, alike, matrix.to(device), ()))
    records = [one.record for one in made]
    squares = (sum(getattr(r, key) ** 2 for r in records) for key in ("norm", "error"))
    norm, error = (total**0.5 for total in squares)
    rank = records[0].rank
    record = ModuleRecord(
        name=module.name,
        rank=rank,
        norm=norm,
        error=error,
        values=tuple(v for r in records for v in r.values),
        kept=tuple(len(r.values) for r in records),
    )
    b = torch.stack([one.pair[0] for one in made], dim=2).flatten(1)
    return _Made(record, (b, torch.cat([one.pair[1] for one in made], dim=0)))


def _padded(pair: Pair, rank: int) -> Pair:
    b, a = pair
    missing = rank - len(a)
    if not missing:
        return pair
    return (
        torch.cat([b, b.new_zeros(len(b), missing)], dim=1),
        torch.cat([a, a.new_zeros(missing, a.shape[1])], dim=0),
    )


def _rounded(pair: Pair, dtype: str) -> Pair:
    rounded = []
    for factor in pair:
        target = torch.empty(factor.shape, dtype=torch_dtype(dtype), device=factor.device)
        round_into(target, factor.contiguous())
        rounded.append(target)
    return rounded[0], rounded[1]


def _check_finite(tensor: torch.Tensor, module: FactorModule, updates: UpdateFile) -> None:
    if not tensor.isfinite().all():
        raise UserError(
            f"the update of {module.name!r} holds infinite values or NaN, and has no factors",
            str(updates.path),
            "Leave the module out with `exclude`, or save it whole with `modules_to_save`.",
        )


def _write(
    file: BinaryIO, module: FactorModule, pair: Pair | None, dtype: str
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for name, factor in zip(module.outputs, pair or (), strict=False):
        data = factor.cpu().contiguous()
        file.write(data.view(torch.uint8).flatten().numpy().tobytes() if data.numel() else b"")
        yield name, dtype, tuple(factor.shape)


def _copy(file: BinaryIO, updates: UpdateFile, tensor: str, chunk: int = 1 << 24) -> None:
    entry = updates.header.tensors[tensor]
    with open(updates.path, "rb") as source:
        source.seek(entry.begin)
        left = entry.end - entry.begin
        while left:
            data = source.read(min(chunk, left))
            if not data:
                raise UserError("is cut off", str(updates.path))
            file.write(data)
            left -= len(data)


def _assemble(target: Path, data: Path, header: bytes, chunk: int = 1 << 24) -> str:
    """Write header and data to a file; return its SHA-256."""
    hasher = hashlib.sha256(header)
    with open(target, "xb") as file, open(data, "rb") as source:
        file.write(header)
        while block := source.read(chunk):
            hasher.update(block)
            file.write(block)
    return hasher.hexdigest()
