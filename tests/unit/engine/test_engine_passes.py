"""Passes by native code: the bits of torch, on every processor, in any pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import engine_cases as cases
from helpers import kernel_cases, method_bytes
from helpers.engine_cases import Models, call_of
from shardmerge.base.numerics import FLOAT32
from shardmerge.engine import native, reductions, row_ranks, tiles
from shardmerge.engine.tiles import halved_sum
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.blocks import tree_sum
from shardmerge.methods.kernels.ranks import Statistic, band_of, ranks_along
from shardmerge.methods.passes import KeyBand, Ranks
from shardmerge.methods.program import Reduction
from shardmerge.methods.registry import kernel_of
from shardmerge.methods.symbolic import Given

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")


class TestSums:
    SQUARES = Reduction(("F32",), (("wide", (0,)), ("times", (1, 1))), (), "sums", (2,))

    @pytest.mark.parametrize("count", [1, 2, 31, 33, 1000, BLOCK - 1, BLOCK])
    def test_are_made_by_halves(self, count: int) -> None:
        values = torch.randn(count, generator=torch.Generator().manual_seed(count))
        code = reductions.native_reduction(self.SQUARES)
        found = halved_sum(code.sums(1, [values.data_ptr()], count, ()))
        expected = tree_sum(values.double().square()[None])
        assert found.tobytes() == expected.numpy().tobytes()

    def test_many_at_once_are_the_same(self) -> None:
        values = torch.randn(BLOCK, generator=torch.Generator().manual_seed(1))
        results = []
        for kept in (1, 5, 13):  # each with another number of parts
            reduction = Reduction(("F32",), self.SQUARES.steps, (), "sums", (2,) * kept)
            code = reductions.native_reduction(reduction)
            results.append(halved_sum(code.sums(1, [values.data_ptr()], BLOCK, ()))[0, 0])
        assert len(set(results)) == 1


class TestSumsOfColumns:
    @pytest.mark.parametrize("shape", [(1001, 211), (BLOCK + 37, 3), (6, BLOCK + 5), (7, 5, 6)])
    def test_rows_are_added_by_halves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
    ) -> None:
        values = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
        group = kernel_cases.ordinary("nuslerp", shape, dtype=torch.float16, **values)
        models = Models(tmp_path, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
        call = call_of("nuslerp", group, [models.source(model) for model in models.tensors])
        read = tiles.ReducedTiles.values
        counts = []

        def counted(self: tiles.ReducedTiles, begin: int, count: int) -> np.ndarray:
            counts.append(count)
            return read(self, begin, count)

        monkeypatch.setattr(tiles.ReducedTiles, "values", counted)
        models.build(models.spec({"w": ("F32", call)}))
        wide = [tensor.float() for tensor in group.tensors]
        expected = kernel_of("nuslerp", FLOAT32)[0](kernel_cases.replace(group, tensors=wide))
        cases.assert_same(models.load()["w"], expected)
        assert sum(counts) == group.tensors[0].numel()
        # rows are read together, not one by one
        assert len(counts) < max(shape[0] / 10, 10)


class TestBands:
    @given(data=st.data())
    @settings(max_examples=50, deadline=None, derandomize=True)
    def test_pieces_have_constant_bounds(self, data: st.DataObject) -> None:
        cuts = [tuple(sorted(data.draw(st.tuples(*[st.integers(0, 60)] * 2)))) for _ in range(2)]
        band = KeyBand(5, 9, *cuts)
        given = Given([0.0, 0.0], [], [(0, band, 0), (1, band, 1)])
        first, count = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 40))
        seen = []
        for begin, size, constants in given.pieces(first, count):
            seen += [(index, constants) for index in range(begin, begin + size)]
        assert [index for index, _ in seen] == list(range(first, first + count))
        assert all(tuple(bounds) == band.bounds(index) for index, bounds in seen)

    def test_of_equals_only_those_of_the_ranks(self) -> None:
        places = {7: [2, 4, 6, 8]}
        one = Statistic(7, 10, 4)
        band = band_of(Ranks(11, 13), one, one, lambda key, number: places[key][number])
        assert [i for i in places[7] if band.bounds(i) == (7, 7)] == [4, 6]

    @pytest.mark.parametrize("name", ["ties", "breadcrumbs", "sce"])
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
    def test_ties_of_few_values(self, tmp_path: Path, name: str, code: str) -> None:
        """Task vectors of three magnitudes, so that every threshold is one of many equals."""
        shape = (50, 7001)
        steps = torch.Generator().manual_seed(5)
        group = kernel_cases.ordinary(name, shape, models=2, density=0.37, gamma=0.2)
        changes = [
            torch.randint(-3, 4, shape, generator=steps).float() / 4 for _ in group.tensors[1:]
        ]
        dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[code]
        tensors = [torch.zeros(shape), *changes]
        models = Models(tmp_path, {f"m{i}": {"w": t.to(dtype)} for i, t in enumerate(tensors)})
        call = call_of(name, group, [models.source(f"m{i}") for i in range(len(tensors))])
        models.build(models.spec({"w": ("F32", call)}))
        expected = kernel_of(name, FLOAT32)[0](kernel_cases.replace(group, tensors=tensors))
        cases.assert_same(models.load()["w"], expected)


class TestRowRanks:
    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 1), (5, 33, 4), (2, 5000, 1)])
    def test_are_those_of_numpy(self, shape: tuple[int, ...]) -> None:
        random = np.random.default_rng(0)
        values = np.abs(random.standard_normal(shape)).astype("f2").astype("f4")
        values.reshape(-1)[::3] = values.reshape(-1)[0]
        values.reshape(-1)[-1:] = np.nan
        assert np.array_equal(row_ranks.native_ranks(values), ranks_along(values))


class TestProcessors:
    @pytest.mark.parametrize("cpu", ["sandybridge", "x86-64-v3", "x86-64-v4"])
    @pytest.mark.skipif(native.platform.machine() != "x86_64", reason="x86-64 only")
    def test_same_bytes_on_older_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str
    ) -> None:
        features = native.binding.get_host_cpu_features()
        needs = {"x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}
        if not features.get(needs.get(cpu, "f16c")):
            pytest.skip(f"this processor is no {cpu}")
        monkeypatch.setattr(native, "_processor", lambda: (cpu, "+f16c"))
        caches = native.native, reductions.native_reduction, row_ranks._function
        for cache in caches:
            cache.cache_clear()
        found = method_bytes.by_the_engine(tmp_path, {}, 1)
        for cache in caches:
            cache.cache_clear()
        assert found.items() <= method_bytes.GOLDEN["hashes"].items()
