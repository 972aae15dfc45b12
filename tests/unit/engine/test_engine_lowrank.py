"""Low-rank products in the engine: the same bits for any block, window and number of threads."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_memory import measured, sparse, spec_of

from helpers import engine_cases as cases
from helpers.engine_cases import Models, assert_same, normal, tuned
from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check.shard import check_shard
from shardmerge.engine import make_tasks, workspace_bytes
from shardmerge.engine.lowrank import ROWS, Product
from shardmerge.engine.memory import STREAMING_BYTES, TUNING


def in_order(
    b: torch.Tensor, a: torch.Tensor, scale: float, transposed: bool, code: str = "F32"
) -> torch.Tensor:
    """Return the product by its definition: the sum over the rank, in order, rounded every time."""
    wide = torch.float64 if code == "F64" else torch.float32
    total = torch.zeros(b.shape[0], a.shape[1], dtype=wide)
    for k in range(a.shape[0]):
        product = b[:, k, None].to(wide) * a[None, k].to(wide)
        total = product if k == 0 else total + product
    total = total * torch.tensor(scale, dtype=wide)
    return total.t().contiguous() if transposed else total


class Case:
    """A model, an adapter of rank 5 for its only matrix, and what they make."""

    def __init__(
        self, folder: Path, rows: int = 37, columns: int = 29, transposed: bool = False,
        codes: str = "F16 F32", scale: float = 1.7,
    ) -> None:  # fmt: skip
        own, of_adapter = codes.split()
        self.scale, self.transposed = scale, transposed
        self.w = normal((rows, columns), 1, own)
        outputs, inputs = (columns, rows) if transposed else (rows, columns)
        self.b, self.a = (
            normal((outputs, 5), 2, of_adapter, 0.5),
            normal((5, inputs), 3, of_adapter),
        )
        self.models = Models(folder, {"m": {"w": self.w}, "l": {"b": self.b, "a": self.a}})
        dtype = "F64" if "F64" in codes else "F32"
        b, a = self.models.source("l", "b"), self.models.source("l", "a")
        self.update = ex.LowRank(b, a, scale, transposed, dtype)
        self.merged = ex.Linear(((1.0, self.models.source("m")), (1.0, self.update)))

    def expected(self, code: str) -> torch.Tensor:
        update = in_order(self.b, self.a, self.scale, self.transposed, self.update.dtype)
        return cases.rounded(self.w.to(update.dtype) + update, code)

    def build(self, expression: ex.Expression, code: str = "F16", **values: Any) -> torch.Tensor:
        numerics = values.pop("numerics", FLOAT32)
        self.models.build(self.models.spec({"w": (code, expression)}, numerics=numerics), **values)
        return self.models.load()["w"]


class TestFloat32:
    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("codes", ["F16 F32", "BF16 BF16", "F32 F16", "F64 F32", "F16 F64"])
    def test_is_the_sum_in_order(self, tmp_path: Path, codes: str, transposed: bool) -> None:
        case = Case(tmp_path, transposed=transposed, codes=codes)
        code = codes.split()[0]
        assert_same(case.build(case.merged, code), case.expected(code))

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("block", [37, 64, 79 * 4, 1 << 17])
    def test_any_block_window_and_threads(
        self, tmp_path: Path, transposed: bool, block: int
    ) -> None:
        case = Case(tmp_path, 83, 79, transposed)
        expected = case.expected("F16")
        for windows in ((4096,), (8192,)):
            for threads in (1, 3):
                with tuned(block=block, windows=windows):
                    got = case.build(case.merged, threads=threads)
                assert_same(got, expected)

    def test_a_product_alone_needs_no_model(self, tmp_path: Path) -> None:
        case = Case(tmp_path)
        spec = case.models.spec({"w": ("F32", case.update)})
        assert [model for model, _ in spec.required_files()] == ["l"]
        got = case.build(ex.Linear(((0.5, case.update),)), "F32")
        assert_same(got, in_order(case.b, case.a, 1.7, False) * 0.5)

    def test_two_adapters(self, tmp_path: Path) -> None:
        case = Case(tmp_path)
        twice = ex.LowRank(case.update.b, case.update.a, -3.0, False, "F32")
        sum_ = ex.Linear((*case.merged.terms, (0.25, twice)))
        second = in_order(case.b, case.a, -3.0, False) * 0.25
        first = case.w.float() + in_order(case.b, case.a, 1.7, False)
        assert_same(case.build(sum_), (first + second).half())

    def test_under_a_method_that_needs_whole_tensors(self, tmp_path: Path) -> None:
        case = Case(tmp_path)
        other = ex.Cast(case.models.source("m"), "F32")
        call = ex.Call(
            "slerp", (case.merged, other), 1, (("t", 0.0),), (), "w", ("a", "m"), (37, 29)
        )
        for threads in (1, 2):
            assert_same(case.build(call, threads=threads), case.w)
        call = ex.Call(
            "slerp", (case.merged, other), 1, (("t", 1.0),), (), "w", ("a", "m"), (37, 29)
        )
        assert_same(case.build(call), case.expected("F16"))

    @pytest.mark.parametrize("transposed", [False, True])
    def test_rows_of_an_adapted_embedding(self, tmp_path: Path, transposed: bool) -> None:
        case = Case(tmp_path, 83, 79, transposed)
        chosen = [5, 0, 82, 5, 40]
        gathered = ex.take_rows(case.merged, rows.format_rows(chosen))
        expected = case.expected("F16")[chosen]
        for threads in (1, 3):
            with tuned(block=64, windows=(4096,)):
                assert_same(case.build(gathered, threads=threads), expected)

    def test_elements_are_those_of_exact_arithmetic(self) -> None:
        b, a = normal((4, 6), 5, "F32", 1.0), normal((6, 3), 6, "F32", 1.0)
        got = in_order(b, a, 1.0, False)
        for i in range(4):
            for j in range(3):
                exact = sum(Fraction(b[i, k].item()) * Fraction(a[k, j].item()) for k in range(6))
                assert abs(float(got[i, j]) - float(exact)) < 1e-6

    def test_overflow_is_told_and_infinite_factors_are_not(self, tmp_path: Path) -> None:
        case = Case(tmp_path, scale=1e8)
        with pytest.raises(UserError, match="infinite or NaN where no source is"):
            case.build(case.merged)
        case = Case(tmp_path / "two")
        case.b[3, 2] = torch.inf
        case.models = Models(tmp_path / "two", case.models.tensors)
        assert (~case.build(case.merged).isfinite()).any(dim=1).tolist() == [
            row == 3 for row in range(37)
        ]

    def test_json(self, tmp_path: Path) -> None:
        case = Case(tmp_path, transposed=True)
        spec = case.models.spec({"w": ("F16", case.merged)})
        again = ShardSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again.tensors == spec.tensors
        assert again.digest == spec.digest
        other = ex.LowRank(case.update.b, case.update.a, 1.8, True, "F32")
        changed = ex.Linear(((1.0, case.models.source("m")), (1.0, other)))
        assert case.models.spec({"w": ("F16", changed)}).digest != spec.digest


class TestMergekit:
    """torch's own product, in blocks, has the bits of the whole product."""

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize(("rows", "columns"), [(83, 79), (3, 950), (950, 3), (128, 96), (1, 7)])
    def test_blocks(self, tmp_path: Path, rows: int, columns: int, transposed: bool) -> None:
        case = Case(tmp_path, rows, columns, transposed)
        update = case.b @ case.a
        update = (update.t() if transposed else update) * 1.7
        expected = case.w.clone()
        expected += update
        merged = ex.Cast(case.merged, "F16")
        for block in (37, 64, 1 << 17):
            with tuned(block=block, windows=(4096,)):
                assert_same(case.build(merged, numerics=MERGEKIT, threads=2), expected)

    @pytest.mark.parametrize("rank", [1, 4, 7, 16, 64])
    def test_large(self, rank: int) -> None:
        b, a = normal((515, rank), 1, "F32"), normal((rank, 301), 2, "F32")
        factors = [ex.Source("l", "f", n, "F32", tuple(t.shape)) for n, t in (("b", b), ("a", a))]
        whole = (b @ a) * 0.3
        product = Product(ex.LowRank(*factors, 0.3, False, "F32"), b, a, ordered=False)
        step = 301 * ROWS * 3 + 17
        parts = [
            product.block(first, min(step, whole.numel() - first), None)
            for first in range(0, whole.numel(), step)
        ]
        assert_same(torch.cat(parts), whole.reshape(-1))


class TestCheck:
    """The check of a written shard recomputes products from the factors."""

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    @pytest.mark.parametrize("codes", ["F16 F32", "F64 F32", "BF16 BF16"])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_right_and_wrong(
        self, tmp_path: Path, transposed: bool, codes: str, numerics: str
    ) -> None:
        case = Case(tmp_path, 150, 140, transposed, codes)
        code = codes.split()[0]
        spec = case.models.spec({"w": (code, ex.Cast(case.merged, code))}, numerics=numerics)
        case.models.build(spec)
        shard = tmp_path / "out.safetensors"
        found = check_shard(spec, shard, case.models.paths, ())
        way = "independently" if numerics == FLOAT32 else "by_engine_steps"
        assert found[f"recomputed_{way}"] == 1 and not found["undecided"]
        other = ex.LowRank(case.update.b, case.update.a, 1.701, transposed, case.update.dtype)
        wrong = ex.Linear((case.merged.terms[0], (1.0, other)))
        case.models.build(case.models.spec({"w": (code, ex.Cast(wrong, code))}, numerics=numerics))
        with pytest.raises(UserError, match="but must be"):
            check_shard(spec, shard, case.models.paths, ())

    def test_a_product_that_cancels_is_within_its_bound(self, tmp_path: Path) -> None:
        case = Case(tmp_path, 150, 140)
        case.b[:, 1], case.a[1] = case.b[:, 0], -case.a[0] * (1 + 2**-20)
        case.models = Models(tmp_path, case.models.tensors)
        spec = case.models.spec({"w": ("F32", case.update)})
        case.models.build(spec)
        assert check_shard(spec, tmp_path / "out.safetensors", case.models.paths, ())["passed"]


class TestMemory:
    def test_is_foretold(self, tmp_path: Path) -> None:
        w = sparse(tmp_path, "m", "F16", (15_000, 4_000))["m"]  # 120 MB
        b = sparse(tmp_path, "b", "F16", (15_000, 16))["b"]
        a = sparse(tmp_path, "a", "F32", (16, 4_000))["a"]
        update = ex.LowRank(b, a, 2.0, False, "F32")
        spec = spec_of("F16", ex.Linear(((1.0, w), (1.0, update))))
        factors = 15_000 * 16 * 6 + 16 * 4_000 * 8
        assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES + TUNING.lanes * factors
        assert measured(tmp_path, spec, threads=2) <= STREAMING_BYTES


@pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [37, 79 * 4, 1 << 17])
def test_a_stack_of_experts(
    tmp_path: Path, block: int, transposed: bool, numerics: Numerics
) -> None:
    """Columns of b alternate between experts, rows of a follow each other; checks agree."""
    count, rank, rows, columns = 3, 4, 17, 19
    b, a = normal((rows, rank * count), 1, "F32"), normal((count * rank, columns), 2, "F32")
    matrices = [
        in_order(b[:, e::count], a[e * rank : (e + 1) * rank], 1.7, transposed)
        for e in range(count)
    ]
    own = normal((count, *matrices[0].shape), 3, "F32")
    models = Models(tmp_path, {"m": {"w": own}, "l": {"b": b, "a": a}})
    product = ex.LowRank(
        models.source("l", "b"), models.source("l", "a"), 1.7, transposed, "F32", count
    )
    merged = ex.Linear(((1.0, models.source("m")), (1.0, product)))
    spec = models.spec({"w": ("F32", merged)}, numerics=numerics)
    with tuned(block=block, windows=(4096,)):
        models.build(spec)
    wanted = own + torch.stack(matrices)
    if numerics is FLOAT32:
        assert_same(models.load()["w"], wanted)
    assert torch.allclose(models.load()["w"], wanted, atol=1e-5)
    found = check_shard(spec, tmp_path / "out.safetensors", models.paths, ())
    assert found["passed"] and not found["undecided"]
    wrong = ex.LowRank(product.b, product.a, 1.701, transposed, "F32", count)
    terms = (merged.terms[0], (1.0, wrong))
    models.build(models.spec({"w": ("F32", ex.Linear(terms))}, numerics=numerics))
    with pytest.raises(UserError, match="but must be"):
        check_shard(spec, tmp_path / "out.safetensors", models.paths, ())
