"""Methods in passes over leaves that files do not hold as they are: the bits of plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import engine_cases as cases
from helpers import format_cases, method_bytes
from helpers.engine_cases import Models, call_of, normal, tuned
from helpers.told_shard import Told
from shardmerge.algebra import expression as ex
from shardmerge.algebra import pieces
from shardmerge.algebra.arrange import arrange
from shardmerge.base.numerics import FLOAT32
from shardmerge.check.shard import check_shard
from shardmerge.engine import native
from shardmerge.engine.tasks import make_tasks
from shardmerge.methods.registry import passes_of

#: Experts, and rows and columns of each: no multiple of a vector's length, nor of a block's.
EXPERTS, ROWS, COLUMNS = 3, 37, 45
SHAPE = (EXPERTS, COLUMNS, ROWS)
INPUTS = 5
#: What files hold of a model, its expression, and its values.
Leaf = tuple[dict[str, torch.Tensor], Callable[[Models, str], ex.Expression], torch.Tensor]


def arranged(number: int) -> Leaf:
    """Return experts that lie one by one and turned, stacked."""
    parts = {f"e{i}": normal((ROWS, COLUMNS), 10 * number + i) for i in range(EXPERTS)}

    def expression(models: Models, model: str) -> ex.Expression:
        sources = {name: models.source(model, name) for name in parts}
        stack = pieces.stack([pieces.entire(name, (ROWS, COLUMNS)) for name in parts])
        return arrange(pieces.transpose(stack, 1, 2), sources)

    return parts, expression, torch.stack([part.t() for part in parts.values()]).contiguous()


def decoded(number: int) -> Leaf:
    """Return a matrix of FP8 numbers with a scale for each block."""
    shape = EXPERTS * COLUMNS, ROWS
    weight = (normal(shape, number, "F32") * 100).to(torch.float8_e4m3fn)
    scales = normal((shape[0] // 16 + 1, shape[1] // 16 + 1), 99 - number, "F32").abs() + 0.01
    parts = {"l.weight": weight, "l.weight_scale_inv": scales}
    config = format_cases.quantised("fp8", weight_block_size=[16, 16])
    (one,) = format_cases.logical_of(parts, config).values()

    def expression(models: Models, model: str) -> ex.Expression:
        stored = ((role, models.source(model, r.tensor)) for role, r in sorted(one.parts.items()))
        return ex.Decoded(one.format, tuple(stored), one.parameters, one.shape, one.step)

    return parts, expression, format_cases.decoded(parts, one)


def values(number: int) -> Leaf:
    """Return 8-bit floats without scales, in matrices that are smaller than what is read."""
    weight = (normal((*SHAPE, 3), number, "F32") * 10).to(torch.float8_e5m2)

    def expression(models: Models, model: str) -> ex.Expression:
        return ex.Decoded("float8", (("codes", models.source(model, "w")),), (), (*SHAPE, 3), 1)

    return {"w": weight}, expression, weight.float()


def adapted(number: int) -> Leaf:
    """Return a matrix with what a LoRA adapter adds to it."""
    shape = EXPERTS * COLUMNS, ROWS
    w, b, a = (
        normal(size, 10 * number + i)
        for i, size in enumerate((shape, (shape[0], 2), (2, shape[1])))
    )

    def expression(models: Models, model: str) -> ex.Expression:
        b, a = models.source(model, "b"), models.source(model, "a")
        update = ex.LowRank(b, a, 0.5, False, "F32")
        return ex.Linear(((1.0, models.source(model, "w")), (1.0, update)))

    product = b[:, :1].float() * a[:1].float() + b[:, 1:].float() * a[1:].float()
    return {"w": w, "b": b, "a": a}, expression, w.float() + product * 0.5


@pytest.mark.parametrize("by", ["native", "torch"])
@pytest.mark.parametrize("kind", [arranged, decoded, values, adapted])
def test_bits_of_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], Leaf], by: str
) -> None:
    """All methods are in one shard, of small windows, so that leaves are read in pieces."""
    if by == "native" and not native.is_usable():
        pytest.skip("no native code here")
    leaves = [kind(number) for number in range(INPUTS)]
    plain = Models(tmp_path, {f"p{i}": {"w": value} for i, (*_, value) in enumerate(leaves)})
    models = Models(tmp_path, {f"m{i}": parts for i, (parts, *_) in enumerate(leaves)})
    shape = tuple(leaves[0][2].shape)
    made = method_bytes.groups(shape, torch.float32)
    wanted, rows = {}, {}
    for label, (name, group) in made.items():
        count = range(len(group.tensors))
        sources = [plain.source(f"p{i}") for i in count]
        wanted[label] = "F32", call_of(name, group, sources)
        inputs = [leaves[i][1](models, f"m{i}") for i in count]
        rows[label] = "F32", call_of(name, group, inputs)
    with tuned(block=1000, windows=(12288,)):
        plain.build(plain.spec(wanted), "plain.safetensors")
        if by == "torch":
            monkeypatch.setattr(native, "is_usable", lambda: False)
        spec = models.spec(rows)
        record = models.build(spec)
    checked = check_shard(
        spec, tmp_path / "out.safetensors", models.paths, [], Told(passes=record.passes)
    )
    assert checked["not_sampled"] == []
    found, expected = models.load(), plain.load("plain.safetensors")
    for label in rows:
        cases.assert_same(found[label], expected[label])
    if kind is not adapted:  # whose products torch makes
        kinds = {task.tensor.name: task.kind for task in make_tasks(spec)}
        for label, (name, _) in made.items():
            assert not passes_of(name, FLOAT32) or kinds[label] == "native", label
