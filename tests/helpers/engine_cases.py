"""Inputs for tests of the engine: small safetensors files, specifications, a plain reference."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from helpers import kernel_cases
from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.files import write_json
from shardmerge.base.numerics import Numerics
from shardmerge.base.safetensors import read_header, write_header
from shardmerge.engine import ShardRecord, build_shard, stream
from shardmerge.plan.records import MergeRecord, load_record

FILE = "model.safetensors"
FLOATS = ("F16", "BF16", "F32", "F64")
CODES = {getattr(torch, d.name): d.code for d in DTYPES.values() if d.bits % 8 == 0}


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_file(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file, tensors in the order given."""
    rows = [(name, CODES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    header = write_header(rows, {"format": "pt"} if metadata is None else metadata)
    path.write_bytes(header + b"".join(map(raw, tensors.values())))
    return path


def write_odd_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a safetensors file whose header has an odd length, so that no tensor is aligned."""
    table, position = {}, 0
    for name, tensor in tensors.items():
        end = position + len(raw(tensor))
        table[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape)}
        table[name]["data_offsets"] = [position, end]
        position = end
    text = json.dumps(table).encode()
    text += b" " * (1 - len(text) % 2)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(map(raw, tensors.values())))
    return path


class Models:
    """Models of one file each, in a folder.

    Args:
        folder: Where files are written.
        tensors: For each model, its tensors.
        odd: Whether the files' data starts at an odd byte.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        odd: bool = False,
    ) -> None:
        self.folder = folder
        self.tensors = tensors
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = {(model, FILE): folder / f"{model}.safetensors" for model in tensors}
        for model, table in tensors.items():
            (write_odd_file if odd else write_file)(self.paths[model, FILE], table)

    def source(self, model: str, tensor: str = "w") -> ex.Source:
        """Return the expression of a model's tensor."""
        value = self.tensors[model][tensor]
        return ex.Source(model, FILE, tensor, CODES[value.dtype], tuple(value.shape))

    def spec(self, tensors: Mapping[str, tuple[str, ex.Expression]], **values: object) -> ShardSpec:
        """Return a specification: for each output tensor, its dtype and what it is."""
        rows = tuple(
            OutputTensor(name, dtype, tuple(expression.shape), expression)
            for name, (dtype, expression) in tensors.items()
        )
        return ShardSpec(rows, {key: f"sha256:{key[0]}" for key in self.paths}, **values)

    def build(
        self, spec: ShardSpec, name: str = "out.safetensors", **values: object
    ) -> ShardRecord:
        """Build a shard beside the models."""
        return build_shard(spec, self.paths, self.folder / name, **values)

    def recorded(self, spec: ShardSpec) -> MergeRecord:
        """Build a shard; return what the next job reads of its record."""
        path = self.folder / "record.json"
        write_json(path, self.build(spec).to_json())
        return load_record(path)

    def load(self, name: str = "out.safetensors") -> dict[str, torch.Tensor]:
        """Return the tensors of a built shard, read without the engine."""
        return load(self.folder / name)


def load(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file."""
    data = path.read_bytes()
    return {
        name: torch.frombuffer(bytearray(data[e.begin : e.end]) or bytearray(8), dtype=torch.uint8)[
            : e.end - e.begin
        ]
        .view(getattr(torch, DTYPES[e.dtype].name))
        .reshape(e.shape)
        for name, e in read_header(path).tensors.items()
    }


@contextlib.contextmanager
def tuned(**values: object) -> Iterator[None]:
    """Use other sizes of blocks and windows in the engine."""
    before = stream.TUNING
    stream.TUNING = dataclasses.replace(before, **values)
    try:
        yield
    finally:
        stream.TUNING = before


SMALL = {"block": 64, "windows": (4096,)}


def wide_code(expression: ex.Expression) -> str:
    """Return the type that an expression's sums are computed in, as the documentation says."""
    named = [getattr(part, "dtype", None) for part in ex.walk(expression)]
    return "F64" if "F64" in named else "F32"


def rounded(value: torch.Tensor, code: str) -> torch.Tensor:
    """Return values rounded once to a dtype, by looking for the nearest of its numbers."""
    dtype = getattr(torch, DTYPES[code].name)
    near = value.to(dtype)
    if value.dtype != torch.float64 or dtype.itemsize != 2:
        return near
    bits = near.view(torch.int16).int()
    candidates = [(bits + step).to(torch.int16).view(dtype) for step in (0, 1, -1)]
    best, miss = near.clone(), (near.double() - value).abs()
    for candidate in candidates[1:]:
        error = (candidate.double() - value).abs()
        even = (candidate.view(torch.int16) & 1) == 0
        better = (error < miss) | ((error == miss) & even)
        best = torch.where(better, candidate, best)
        miss = torch.where(better, error, miss)
    return best


def reference(
    expression: ex.Expression, tensors: Mapping[str, Mapping[str, torch.Tensor]]
) -> torch.Tensor:
    """Return what an expression is, computed plainly with whole tensors in float32 numerics."""
    again = functools.partial(reference, tensors=tensors)
    wide = getattr(torch, DTYPES[wide_code(expression)].name)
    match expression:
        case ex.Source(model, _, tensor):
            return tensors[model][tensor]
        case ex.Cast(operand, dtype):
            return rounded(again(operand), dtype)
        case ex.Delta(finetuned, base, dtype):
            return rounded(again(finetuned).to(wide) - again(base).to(wide), dtype)
        case ex.Linear(terms):
            products = [again(x).to(wide) * torch.tensor(c, dtype=wide) for c, x in terms]
            total = products[0]
            for product in products[1:]:
                total = total + product
            return total
        case ex.Rows(operand, table):
            value = again(operand)
            zero = torch.zeros(value.shape[1:], dtype=value.dtype)
            taken = [zero if row == rows.ZERO else value[row] for row in rows.expand_rows(table)]
            return torch.stack(taken)
        case ex.Choice(operands, table):
            values = [again(operand).to(wide) for operand in operands]
            made = []
            for row, members in enumerate(rows.expand_choice(table)):
                total = torch.zeros(values[0].shape[1:], dtype=wide)
                for member in members:
                    total = total + values[member][row]
                made.append(total / max(len(members), 1))
                if len(members) == 1:  # a row as it is keeps its negative zeros
                    made[-1] = values[members[0]][row]
            return torch.stack(made)
        case ex.Mean(operand):
            return again(operand).double().mean(dim=0, keepdim=True).to(wide)
        case ex.RowSums(operand, numbers, weights):
            value, made = again(operand).to(wide), []
            for row in torch.stack([again(numbers).double(), again(weights).double()], dim=2):
                terms = sorted((int(n), w) for n, w in row.tolist() if n >= 0)
                total = torch.zeros(value.shape[1:], dtype=wide)
                for place, (number, weight) in enumerate(terms):
                    product = value[number] * torch.tensor(weight, dtype=wide)
                    total = total + product if place else product
                made.append(total)
            return torch.stack(made)
    raise TypeError(expression)


def normal(shape: Sequence[int], seed: int, code: str = "F16", scale: float = 0.05) -> torch.Tensor:
    """Return random numbers of a dtype."""
    random = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, DTYPES[code].name)
    return (torch.randn(tuple(shape), generator=random, dtype=torch.float64) * scale).to(dtype)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Show that two tensors have the same dtype, shape and bytes."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert raw(got) == raw(expected), f"{math.prod(got.shape)} elements differ somewhere"


def models_of_method(
    folder: Path,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    numerics: Numerics,
    dtype: torch.dtype = torch.float16,
) -> tuple[Models, ShardSpec]:
    """Return models of some tensors, and the specification of what a method makes of them."""
    groups = {one: kernel_cases.ordinary(name, shape, dtype=dtype) for one, shape in shapes.items()}
    count = len(next(iter(groups.values())).tensors)
    tables = {f"m{k}": {t: group.tensors[k] for t, group in groups.items()} for k in range(count)}
    models = Models(folder, tables)
    made = {
        tensor: ("F16", call_of(name, group, [models.source(one, tensor) for one in tables]))
        for tensor, group in groups.items()
    }
    return models, models.spec(made, numerics=numerics, allow_nonfinite=True)


def call_of(name: str, group: object, inputs: list[ex.Expression]) -> ex.Call:
    """Return the call of a method that makes what a kernel makes of a group."""
    return ex.Call(
        method=name,
        inputs=tuple(inputs),
        base=group.base,
        parameters=tuple(sorted(group.parameters.items())),
        per_input=tuple(sorted(group.per_input.items())),
        tensor=group.name,
        models=group.models,
        output_shape=tuple(inputs[0].shape),
    )
