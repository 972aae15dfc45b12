"""Deterministic sums and exact order statistics over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.blocks import row_sums, tiles, totals, tree_sum
from shardmerge.methods.kernels.execute import TorchElements, answered
from shardmerge.methods.kernels.selection import (
    Keys,
    RankBand,
    key_values,
    order_statistics,
    sort_keys,
)
from shardmerge.methods.passes import (
    Bands,
    Counts,
    Maxima,
    OrderStatistics,
    Ranks,
    Sums,
    Wanted,
)


def found(wanted: Wanted, values: torch.Tensor) -> Any:
    """Return what a pass over values wants to know."""
    read = partial(_slices, values)
    return answered(wanted, values.shape, read)


def _slices(values: torch.Tensor, first: int, count: int) -> list[torch.Tensor]:
    return [values[first : first + count]]


class TestTiles:
    @pytest.mark.parametrize(
        "shape", [(1, 1), (1, 3 * BLOCK + 5), (7, BLOCK + 1), (1000, 700), (BLOCK + 3, 2)]
    )
    def test_cover_in_order(self, shape: tuple[int, int]) -> None:
        rows, columns = shape
        position = 0
        for row, column in tiles(rows, columns):
            size = (row.stop - row.start) * (column.stop - column.start)
            assert 0 < size <= BLOCK
            assert row.start * columns + column.start == position
            position += size
        assert position == rows * columns


class TestSums:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.lists(st.integers(-(2**40), 2**40), max_size=70))
    def test_exact_where_no_rounding(self, values: list[int]) -> None:
        assert tree_sum(torch.tensor(values, dtype=torch.float64)).item() == sum(values)

    def test_rows(self) -> None:
        matrix = torch.randn(5, BLOCK + 77, generator=torch.Generator().manual_seed(0))
        wide = matrix.double()
        sums = row_sums(lambda r, c: [wide[r, c] * 1, wide[r, c].square()], *matrix.shape)
        assert torch.allclose(sums, torch.stack([wide.sum(1), wide.square().sum(1)]), rtol=1e-12)
        flat = wide.reshape(-1)
        assert totals(lambda span: [flat[span].square()], len(flat)) == [
            pytest.approx(float(flat.square().sum()), rel=1e-13)
        ]


@pytest.mark.parametrize(
    "shape", [(1, 3 * BLOCK + 5), (5, BLOCK + 77), (700, 1000), (BLOCK + 3, 2)]
)
def test_what_passes_find_does_not_depend_on_how_much_is_read_at_a_time(
    shape: tuple[int, int],
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).reshape(-1)
    values = values.half().float()  # so that many are equal
    middle = len(values) // 2

    def squares(x: TorchElements) -> list[torch.Tensor]:
        return [x[0].double() * x[0].double(), x[0].double() / 3]

    for wanted in (
        *(Sums(squares, axis) for axis in ("all", "last", "first")),
        Counts(lambda x: [x[0] > 0, x[0] > 1]),
        Maxima(squares, "last"),
        Bands(lambda x: [x[0].abs()], (Ranks(middle, middle + 9),)),
        OrderStatistics(lambda x: x[0].abs(), (3, middle)),
    ):
        read = partial(_slices, values)
        one, *others = (answered(wanted, shape, read, step) for step in (BLOCK, 4 * BLOCK, 1 << 30))
        assert all(np.array_equal(one, other) for other in others), wanted


class TestOrderStatistics:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_are_those_of_a_sort(self, dtype: torch.dtype, data: st.DataObject) -> None:
        pool = [0.0, 1e-45, 1e-30, 0.5, 0.5000001, 1.0, 3.0, 1e30, float("inf")]
        values = torch.tensor(data.draw(st.lists(st.sampled_from(pool), min_size=1)), dtype=dtype)
        ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
        ordered = values.sort().values
        wanted = OrderStatistics(lambda x: x[0], tuple(ranks))
        assert found(wanted, values) == ordered[ranks].tolist()

    @pytest.mark.parametrize("descending", [False, True])
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_bands_break_ties_by_index(self, descending: bool, data: st.DataObject) -> None:
        pool = st.sampled_from([0.0, 0.25, 0.5, 0.75])
        values = torch.tensor(data.draw(st.lists(pool, min_size=2, max_size=40)))
        start = data.draw(st.integers(0, len(values) - 1))
        stop = data.draw(st.integers(start + 1, len(values)))
        (band,) = found(Bands(lambda x: [x[0]], (Ranks(start, stop, descending),)), values)
        expected = torch.zeros(len(values), dtype=torch.bool)
        order = values.argsort(stable=True, descending=descending)
        expected[order[start:stop]] = True
        assert torch.equal(TorchElements([values], values.shape, 0).inside(values, band), expected)

    def test_nan_of_either_sign_is_the_greatest(self) -> None:
        values = torch.tensor([1.0, float("nan"), -float("nan"), 2.0])
        (low, high) = found(OrderStatistics(lambda x: x[0], (1, 2)), values)
        assert (low, high != high) == (2.0, True)


class TestMaxima:
    @pytest.mark.parametrize("shape", [(3, BLOCK + 7), (40, 5), (9,)])
    def test_are_those_of_rows(self, shape: tuple[int, ...]) -> None:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        wanted = Maxima(lambda x: [x[0].double(), -x[0].double()], "last")
        got = answered(wanted, shape, partial(_slices, values.reshape(-1)))
        rows = values.reshape(-1, shape[-1]).double()
        assert got.tolist() == torch.stack([rows.amax(1), (-rows).amax(1)]).tolist()


def blockwise(values: torch.Tensor, step: int, descending: bool = False) -> Keys:
    def keys() -> Iterator[torch.Tensor]:
        for part in values.split(step):
            yield sort_keys(part, descending)

    return keys


class TestKeysInBlocks:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_are_those_of_a_sort(self, dtype: torch.dtype, data: st.DataObject) -> None:
        pool = [0.0, 1e-45, 1e-30, 0.5, 0.5000001, 1.0, 3.0, 1e30, float("inf")]
        values = torch.tensor(data.draw(st.lists(st.sampled_from(pool), min_size=1)), dtype=dtype)
        ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
        found = order_statistics(blockwise(values, 7), dtype, ranks)
        ordered = values.sort().values
        assert key_values([key for key, _ in found], dtype) == ordered[ranks].tolist()
        for (key, less), rank in zip(found, ranks, strict=True):
            assert less == int((sort_keys(values) < key).sum()) <= rank

    @pytest.mark.parametrize("descending", [False, True])
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_bands_break_ties_by_index(self, descending: bool, data: st.DataObject) -> None:
        pool = st.sampled_from([0.0, 0.25, 0.5, 0.75])
        values = torch.tensor(data.draw(st.lists(pool, min_size=2, max_size=40)))
        start = data.draw(st.integers(0, len(values) - 1))
        stop = data.draw(st.integers(start + 1, len(values)))
        keys = blockwise(values, 5, descending)
        band = RankBand.find(keys, values.dtype, start, stop)
        expected = torch.zeros(len(values), dtype=torch.bool)
        order = values.argsort(stable=True, descending=descending)
        expected[order[start:stop]] = True
        assert torch.equal(torch.cat(list(band.masks(keys))), expected)
