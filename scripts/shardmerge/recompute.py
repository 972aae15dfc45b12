"""A sample of a written shard, computed again in float64, on a path of its own.

Only the registry's kernels and the specification are shared with the engine: reading,
evaluation and rounding are other code.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from shardmerge import expression as ex
from shardmerge.dtypes import DTYPES
from shardmerge.errors import UserError
from shardmerge.headers import Header, read_header
from shardmerge.registry import Group, kernel_of
from shardmerge.spec import ShardSpec, delta_name
from shardmerge.stored import stored_deltas

#: Elements of each tensor that are checked: evenly spread, the first and the last among them.
SAMPLE = 256
#: A method that needs a whole tensor is checked on tensors of at most so many elements.
WHOLE = 1 << 22
#: Half a unit in the last place, relative, and the smallest subnormal: what rounding may change.
_ROUNDING = {
    "F16": (2.0**-11, 2.0**-25),
    "BF16": (2.0**-8, 2.0**-134),
    "F32": (2.0**-24, 2.0**-150),
    "F64": (2.0**-53, 0.0),
}


def check_shard(
    spec: ShardSpec, shard: Path, sources: list[Path], deltas: list[Path]
) -> dict[str, Any]:
    """Compare a written shard with its specification, and a sample with its sources.

    Args:
        spec: The shard's specification.
        shard: The written file.
        sources: Source files, in the order of ``spec.required_files``.
        deltas: Stored task vectors.

    Returns:
        Counts of tensors and elements, the largest error as a share of the tolerance, and the
        tensors that could not be sampled.

    Raises:
        UserError: Names the tensor, the element, and what was expected and found.
    """
    header = read_header(shard)
    _check_header(spec, header, shard)
    reader = _Reader(spec, sources, deltas)
    elements, worst, skipped = 0, 0.0, []
    for tensor in spec.tensors:
        count = math.prod(tensor.shape)
        positions = _positions(count)
        written = _read(shard, header, tensor.name, positions)
        whole = not _elementwise(tensor.expression, spec.numerics)
        if whole and count > WHOLE:
            skipped.append(tensor.name)
            continue
        if isinstance(tensor.expression, ex.Source) and tensor.expression.dtype == tensor.dtype:
            same = reader.raw(tensor.expression, positions)
            if not torch.equal(_bits(same), _bits(written)):
                raise UserError(f"tensor {tensor.name!r} is not its source's copy", str(shard))
        elif count:
            worst = max(worst, _compare(tensor, spec, reader, positions, written, whole, shard))
        elements += len(positions)
    return {
        "tensors": len(spec.tensors),
        "elements": elements,
        "largest_error": worst,
        "not_sampled": skipped,
        "passed": True,
    }


def _compare(
    tensor: Any,
    spec: ShardSpec,
    reader: _Reader,
    positions: list[int],
    written: torch.Tensor,
    whole: bool,
    shard: Path,
) -> float:
    at = list(range(math.prod(tensor.shape))) if whole else positions
    exact = spec.numerics != "float32"
    value, size = reader.evaluate(tensor.expression, at, tensor.shape if whole else None)
    if whole:
        value, size = value.flatten()[positions], size.flatten()[positions]
    if exact:
        value = value.to(written.dtype).double()
    found = written.double()
    relative, smallest = _ROUNDING[tensor.dtype]
    terms = sum(1 for _ in ex.walk(tensor.expression))
    # Rounding of the output, and of each float32 operation, each relative to what is summed.
    tolerance = relative * value.abs() + smallest + 2 * terms * 2.0**-24 * size
    tolerance = torch.zeros_like(value) if exact else tolerance
    limit = torch.finfo(getattr(torch, DTYPES[tensor.dtype].name)).max
    both = torch.isfinite(value) & torch.isfinite(found) & (value.abs() <= limit)
    same = ~both & ((value == found) | (value.isnan() & found.isnan()) | (value.abs() > limit))
    error = torch.where(both, (value - found).abs(), torch.zeros_like(value))
    bad = (error > tolerance) | (~both & ~same)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise UserError(
            f"tensor {tensor.name!r}, element {positions[i]}: expected {value[i].item():.9g}, "
            f"found {found[i].item():.9g}",
            str(shard),
            "Delete the shard and run again; if it comes back, the disk or memory may be bad.",
        )
    return float((error / tolerance.clamp(min=1e-300)).max()) if not exact else 0.0


class _Reader:
    def __init__(self, spec: ShardSpec, sources: list[Path], deltas: list[Path]) -> None:
        self.spec = spec
        self.stored = stored_deltas(spec, deltas)
        files = spec.required_files(self.stored)
        self.paths = dict(zip(files, sources, strict=True))
        self.headers: dict[Path, Header] = {}

    def raw(self, source: ex.Source, positions: list[int]) -> torch.Tensor:
        """Return elements of a source tensor as they are stored."""
        return self._elements(self.paths[source.model, source.file], source.tensor, positions)

    def evaluate(
        self, expression: ex.Expression, at: list[int], shape: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values in float64, and the sum of the absolute values that they are made of."""
        match expression:
            case ex.Source():
                value = self.raw(expression, at).double()
                value = value.reshape(shape) if shape else value
                return value, value.abs()
            case ex.Delta(finetuned, base, dtype):
                if path := self.stored.get(expression):
                    name = delta_name(expression, self.spec.files)
                    value = self._elements(path, name, at).double()
                    value = value.reshape(shape) if shape else value
                    return value, value.abs()
                (a, _), (b, _) = self.evaluate(finetuned, at, shape), self.evaluate(base, at, shape)
                value = (a - b).to(getattr(torch, DTYPES[dtype].name)).double()
                # Rounding twice (float32, then dtype) may differ from once by a unit.
                return value, value.abs() * (1 + 2.0**24 * _ROUNDING[dtype][0])
            case ex.Linear(terms):
                value = size = 0.0
                for coefficient, operand in terms:
                    v, s = self.evaluate(operand, at, shape)
                    value, size = value + coefficient * v, size + abs(coefficient) * s
                return value, size
            case ex.Cast(operand, dtype):
                value, size = self.evaluate(operand, at, shape)
                return value.to(getattr(torch, DTYPES[dtype].name)).double(), size
            case ex.Call():
                return self._call(expression, at, shape)
        raise TypeError(f"not an expression: {expression!r}")

    def _call(
        self, call: ex.Call, at: list[int], shape: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kernel, _ = kernel_of(call.method, self.spec.numerics)
        pairs = [self.evaluate(operand, at, shape) for operand in call.inputs]
        tensors = [value for value, _ in pairs]
        if self.spec.numerics != "float32":
            tensors = [
                value.to(getattr(torch, DTYPES[_dtype(operand)].name))
                for value, operand in zip(tensors, call.inputs, strict=True)
            ]
        group = Group(
            tensors=tensors,
            base=call.base,
            parameters=dict(call.parameters),
            per_input=dict(call.per_input),
            name=call.tensor,
            models=call.models,
        )
        value = kernel(group).double()
        size = torch.stack([s for _, s in pairs]).sum(0)
        # A method may amplify rounding errors of its inputs; a wide margin still finds damage.
        return value, (value.abs() + size) * 64

    def _elements(self, path: Path, tensor: str, positions: list[int]) -> torch.Tensor:
        if path not in self.headers:
            self.headers[path] = read_header(path)
        return _read(path, self.headers[path], tensor, positions)


def _dtype(expression: ex.Expression) -> str:
    match expression:
        case ex.Source(dtype=dtype) | ex.Cast(dtype=dtype) | ex.Delta(dtype=dtype):
            return dtype
        case ex.Call(inputs=inputs):
            return _dtype(inputs[0])
    return "F32"


def _elementwise(expression: ex.Expression, numerics: str) -> bool:
    return all(
        kernel_of(e.method, numerics)[1] for e in ex.walk(expression) if isinstance(e, ex.Call)
    ) and not any(isinstance(e, ex.Call) and _keyed(e) for e in ex.walk(expression))


def _keyed(call: ex.Call) -> bool:
    """Whether a kernel's result depends on the element's place, as a random method's does."""
    from shardmerge.registry import method

    return not method(call.method).deterministic


def _positions(count: int) -> list[int]:
    if count <= SAMPLE:
        return list(range(count))
    return [(count - 1) * i // (SAMPLE - 1) for i in range(SAMPLE)]


def _read(path: Path, header: Header, tensor: str, positions: list[int]) -> torch.Tensor:
    entry = header.tensors[tensor]
    dtype = DTYPES[entry.dtype]
    if positions == list(range(len(positions))):
        spans = [(entry.begin, len(positions) * dtype.size)]
    else:
        spans = [(entry.begin + p * dtype.size, dtype.size) for p in positions]
    with open(path, "rb", buffering=0) as file:
        data = b"".join(os.pread(file.fileno(), size, offset) for offset, size in spans if size)
    if not data:
        return torch.empty(0, dtype=getattr(torch, dtype.name))
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype.name))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def _check_header(spec: ShardSpec, header: Header, shard: Path) -> None:
    wanted = [(t.name, t.dtype, t.shape) for t in spec.tensors]
    found = [(name, e.dtype, e.shape) for name, e in header.tensors.items()]
    # Tensors without elements share an offset: their order is of no consequence.
    if sorted(wanted) != sorted(found):
        odd = next(iter({n for n, *_ in wanted} ^ {n for n, *_ in found}), None) or next(
            a[0] for a, b in zip(sorted(wanted), sorted(found), strict=True) if a != b
        )
        raise UserError(f"tensor {odd!r} is not as it was planned", str(shard))
