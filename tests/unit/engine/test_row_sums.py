"""Rows that are sums of rows: what the engine makes, whatever its blocks, and what checks find."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.engine_cases import FILE as MODEL_FILE
from helpers.engine_cases import SMALL, Models, assert_same, normal, reference, rounded, tuned
from shardmerge.algebra import expression as ex
from shardmerge.algebra.json import from_json, to_json
from shardmerge.algebra.rows import format_choice, format_rows
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import MERGEKIT
from shardmerge.check.memory import check_bytes
from shardmerge.check.shard import check_shard
from shardmerge.engine import make_tasks, workspace_bytes
from shardmerge.engine.memory import STREAMING_BYTES

COUNT, MOST, ROWS, WIDTH = 60, 7, 90, 48


def tables(seed: int = 0, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Return tables of distinct rows in random order; the first sum has none, the next has one."""
    random = torch.Generator().manual_seed(seed)
    numbers = torch.stack([torch.randperm(rows, generator=random)[:MOST] for _ in range(COUNT)])
    numbers[torch.rand(numbers.shape, generator=random) < 0.3] = -1
    numbers[0], numbers[1, 1:], numbers[1, 0] = -1, -1, rows - 1
    weights = torch.randn(COUNT, MOST, generator=random)
    weights[1] = 1.0
    return {"rows": numbers.int(), "weights": weights}


@pytest.fixture
def models(tmp_path: Path) -> Models:
    wide = normal((ROWS, WIDTH), 1, "F16")
    wide[ROWS - 1, 0] = -0.0
    return Models(
        tmp_path / "models",
        {
            "a": {"w": wide},
            "b": {"w": normal((ROWS, WIDTH), 2, "BF16")},
            "d": {"w": normal((ROWS, WIDTH), 3, "F64")},
            "made": tables(),
        },
    )


def sums(models: Models, operand: ex.Expression) -> ex.RowSums:
    return ex.RowSums(operand, models.source("made", "rows"), models.source("made", "weights"))


def cases(models: Models) -> dict[str, ex.Expression]:
    a, b, d = (models.source(name) for name in "abd")
    mixed = ex.Linear(((0.5, a), (0.25, b)))
    of_a = sums(models, a)
    own = ex.take_rows(a, format_rows(range(COUNT)))
    turned = ex.take_rows(of_a, format_rows(range(COUNT - 1, -1, -1)))
    choice = format_choice([(i % 2,) for i in range(COUNT)])
    return {
        "plain": of_a,
        "of bfloat16": sums(models, b),
        "in float64": sums(models, d),
        "of a sum": sums(models, mixed),
        "rows of them": turned,
        "beside own rows": ex.Choice((own, turned), choice),
        "in a sum": ex.Linear(((1.0, own), (0.5, of_a))),
        "of chosen rows": ex.RowSums(
            ex.Choice((ex.take_rows(a, format_rows([*range(60), *range(30)])),) * 2, "0*90"),
            models.source("made", "rows"),
            models.source("made", "weights"),
        ),
    }


NAMES = (
    "plain", "of bfloat16", "in float64", "of a sum", "rows of them", "beside own rows", "in a sum",
    "of chosen rows",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_as_defined_and_checked(models: Models, name: str, dtype: str) -> None:
    expression = cases(models)[name]
    spec = models.spec({"t": (dtype, expression)})
    wanted = rounded(reference(expression, models.tensors), dtype)
    for threads, values in ((1, {}), (3, SMALL)):
        with tuned(**values):
            models.build(spec, threads=threads)
        assert_same(models.load()["t"], wanted)
    found = check_shard(spec, models.folder / "out.safetensors", models.paths, [])
    assert found["elements"] and not found["not_sampled"]


def test_mergekits_numerics_round_to_the_operands_type(models: Models) -> None:
    expression = sums(models, models.source("a"))
    spec = models.spec({"t": ("F32", expression)}, numerics=MERGEKIT)
    models.build(spec)
    wanted = reference(expression, models.tensors).half().float()
    assert_same(models.load()["t"], wanted)
    check_shard(spec, models.folder / "out.safetensors", models.paths, [])


def test_a_check_finds_what_is_wrong(models: Models) -> None:
    """One weight, or one row, is another than the shard was made with."""
    spec = models.spec({"t": ("F32", sums(models, models.source("a")))})
    models.build(spec)
    made = models.tensors["made"]
    for name, value in (("weights", made["weights"] * 1.001), ("rows", made["rows"].flip(0))):
        other = Models(models.folder / name, {"made": made | {name: value.contiguous()}}).paths[
            "made", MODEL_FILE
        ]
        paths = models.paths | {("made", MODEL_FILE): other}
        with pytest.raises(UserError, match="'t'"):
            check_shard(spec, models.folder / "out.safetensors", paths, [])


@pytest.mark.parametrize("bad", [ROWS, -2, 2**31 - 1])
def test_a_row_that_there_is_not(tmp_path: Path, bad: int) -> None:
    made = tables()
    made["rows"][5, 2] = bad
    models = Models(tmp_path, {"a": {"w": normal((ROWS, WIDTH), 1)}, "made": made})
    spec = models.spec({"t": ("F32", sums(models, models.source("a")))})
    with pytest.raises(UserError, match="are not of this model"):
        models.build(spec)
    assert not (tmp_path / "out.safetensors").exists()


def test_infinite_sources_are_told_from_infinite_sums(tmp_path: Path) -> None:
    weights = normal((ROWS, WIDTH), 1)
    weights[ROWS - 1, 3] = float("inf")
    models = Models(tmp_path, {"a": {"w": weights}, "made": tables()})
    spec = models.spec({"t": ("F32", sums(models, models.source("a")))})
    models.build(spec)
    assert models.load()["t"][1, 3] == float("inf")
    check_shard(spec, tmp_path / "out.safetensors", models.paths, [])


def test_json(models: Models) -> None:
    for expression in cases(models).values():
        assert from_json(to_json(expression)) == expression


def test_memory_is_foretold(models: Models) -> None:
    spec = models.spec({"t": ("F32", sums(models, models.source("a")))})
    tasks = make_tasks(spec)
    assert workspace_bytes(tasks) > STREAMING_BYTES + COUNT * WIDTH * 4
    assert check_bytes(tasks) > STREAMING_BYTES
