"""What an expression is read from, whatever stands between."""

from __future__ import annotations

import pytest

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import Leaves, block_leaves, bytes_read, file_leaves, leaf_sources
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.numerics import FLOAT32, MERGEKIT

SHAPE = (6, 4)


def source(model: str, dtype: str = "F16") -> ex.Source:
    return ex.Source(model, f"{model}.safetensors", "w", dtype, SHAPE)


A, B, Q = (source(model) for model in "abq")
DELTA = ex.Delta(A, B, "F16")
ROWS = ex.Rows(Q, "5,-2,0+3")
FACTORS = (
    ex.Source("l", "l.safetensors", "w.lora_B", "F16", (6, 2)),
    ex.Source("l", "l.safetensors", "w.lora_A", "F16", (2, 4)),
)
PRODUCT = ex.LowRank(*FACTORS, 0.5, False, "F32")


def held(*inputs: ex.Expression) -> ex.Call:
    """Return a call of a step that must see whole tensors."""
    return ex.Call("dora", inputs, None, (("transposed", False),), output_shape=SHAPE)


def slerp(*inputs: ex.Expression) -> ex.Call:
    """Return a call of a method that is computed in passes."""
    return ex.Call("slerp", inputs, 0, (("t", 0.5),), output_shape=SHAPE)


class TestWalk:
    def test_stops_where_it_is_told(self) -> None:
        total = ex.Linear(((1.0, DELTA), (0.5, Q)))
        assert list(ex.walk(total)) == [total, DELTA, A, B, Q]
        stopped = ex.walk(total, until=lambda part: part == DELTA)
        assert list(stopped) == [total, DELTA, Q]


class TestFileLeaves:
    TOTAL = ex.Linear(((1.0, ROWS), (0.5, held(DELTA, Q)), (2.0, PRODUCT), (0.1, DELTA)))

    def test_all_that_is_read_once_each_in_order(self) -> None:
        assert file_leaves(self.TOTAL) == (ROWS, A, B, Q, *FACTORS)

    def test_a_stored_task_vector_is_read_and_its_models_are_not(self) -> None:
        assert file_leaves(self.TOTAL, {DELTA}) == (ROWS, DELTA, Q, *FACTORS)
        assert file_leaves(DELTA, {DELTA}) == (DELTA,)

    @pytest.mark.parametrize(("stored", "files"), [((), "qabl"), ({DELTA}, "ql")])
    def test_files_follow(self, stored: set[ex.Delta], files: str) -> None:
        spec = ShardSpec((OutputTensor("w", "F16", SHAPE, self.TOTAL),), {})
        assert [model for model, _ in spec.required_files(stored)] == list(files)
        leaves = file_leaves(self.TOTAL, stored)
        assert {s.model for leaf in leaves for s in leaf_sources(leaf)} == set(files)

    def test_bytes(self) -> None:
        assert bytes_read(A) == 6 * 4 * 2
        assert bytes_read(ROWS) == 4 * 4 * 2  # two of its rows are zeros
        assert bytes_read(ex.Delta(A, B, "F32")) == 6 * 4 * 4


class TestBlockLeaves:
    def test_of_a_sum(self) -> None:
        total = ex.Linear(((1.0, ROWS), (0.5, DELTA), (2.0, PRODUCT)))
        assert block_leaves(total, (), "float32") == Leaves((ROWS, A, B), (), (DELTA,))
        assert block_leaves(total, {DELTA}, "float32") == Leaves((ROWS, DELTA), (), (DELTA,))

    def test_what_lies_under_a_whole_call_is_not_met(self) -> None:
        call = held(DELTA, Q)
        assert block_leaves(call, (), "float32") == Leaves((), (call,), ())
        total = ex.Linear(((1.0, A), (0.5, call)))
        assert block_leaves(total, (), "float32") == Leaves((A,), (call,), ())

    def test_rows_of_what_is_computed_are_held(self) -> None:
        rows = ex.Rows(held(A, B), "0+6")
        mean = ex.Mean(Q)
        total = ex.Choice((rows, mean), "0*6")
        assert block_leaves(total, (), "float32") == Leaves((), (rows, mean), ())

    def test_rows_of_a_result_in_passes_are_rows_of_what_is_read(self) -> None:
        inner = ex.Rows(slerp(DELTA, Q), "5,0+5")
        rows = ex.Rows(slerp(inner, ROWS), "2,-1,0+4")
        taken = [ex.Rows(one, "1,-1,5,0+3") for one in (A, B, Q)]
        of_rows = ex.Rows(Q, "-2,5,-2,0")
        assert block_leaves(rows, (), FLOAT32) == Leaves((*taken, of_rows), (), (DELTA,))

    @pytest.mark.parametrize("count", [4, 5])
    def test_what_torch_adds_otherwise_at_the_end_is_held(self, count: int) -> None:
        """In mergekit numerics rows of five terms would have other bits than the whole."""
        values = (("normalize", True),), (("weight", (0.5,) * count),)
        total = ex.Call("linear", (A,) * count, None, *values, output_shape=SHAPE)
        assert bool(block_leaves(ex.Rows(total, "3"), (), MERGEKIT).held) == (count > 4)
