"""Passes by native code: the bits of torch, on every processor, in any pieces."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import engine_cases as cases
from helpers import kernel_cases, method_bytes
from helpers.engine_cases import Models, call_of
from shardmerge.algebra import expression as ex
from shardmerge.base.numerics import FLOAT32
from shardmerge.engine import caught, machine_code, native, reductions, row_calls, tiles
from shardmerge.engine.halves import halved_sum
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.native import array_code
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels import brackets
from shardmerge.methods.kernels.blocks import tree_sum
from shardmerge.methods.kernels.brackets import (
    Bracket,
    KeyPasses,
    Statistic,
    band_of,
    counted_coarsely,
    find_bands,
    find_keys,
    guess,
)
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import GREATEST_KEY, KeyBand, Ranks
from shardmerge.methods.program import LANES, Reduction
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

    def test_one_number_of_all_elements_is_divided_once(self) -> None:
        steps = (
            *(("full F32", (0,)), ("wide", (1,)), ("full F64", (1,)), ("over", (2, 3))),
            *(("wide", (0,)), ("times", (5, 4))),
        )
        reduction, x = Reduction(("F32",), steps, (), "sums", (6,)), np.arange(64, dtype="<f4")
        assert "fdiv <" not in reductions._text(reduction, 1)
        values = reductions.native_reduction(reduction).values([x.ctypes.data], 64, (1.0, 3.0))
        assert np.array_equal(values[0], x.astype(float) * (1 / 3.0))


class TestCaught:
    @pytest.mark.parametrize("inside", [0, 1, 2, 3, 32])
    def test_any_number_of_a_vectors_keys_is_kept(self, inside: int) -> None:
        x = np.full(96, 4.0, "<f4")
        x[40 : 40 + inside] = 2.0
        reduction = Reduction(("F32",), (("key", (0,)),), (), "caught", (1, 1))
        code, key = reductions.native_reduction(reduction), int(np.float32(2).view(np.int32))
        kept = caught.CaughtKeys([Bracket(0, key, 0, 1), Bracket(0, key + 1, 0, 9)])

        class Tiles:
            is_one_piece = True

            def catch(self, found: np.ndarray, first: int, count: int, more: np.ndarray) -> None:
                code.catch(found, [x.ctypes.data], count, (), more)

        kept.add(Tiles(), 0, 96)
        kept.add(Tiles(), 96, 80)
        (below, keys), (rest, none) = kept.found()
        assert keys.tolist() == [key] * 2 * inside
        assert (below, rest, len(none)) == (0, 2 * inside, 0)

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("marking", [0, 1000])
    def test_tiles_are_told_apart(
        self, monkeypatch: pytest.MonkeyPatch, together: bool, marking: int
    ) -> None:
        step, count = 96, 1000
        monkeypatch.setattr(caught, "AHEAD", 3 * step)  # so that there is not room for all at first
        x = np.random.default_rng(2).integers(0, 40, count + LANES).astype("<i4").view("<f4")
        brackets = [Bracket(0, 5, 0, 30), Bracket(0, 38, 0, 1)]
        kept = caught.CaughtKeys(brackets, marking, step)
        code = reductions.native_reduction(
            Reduction(("F32",), (("key", (0,)),), (), kept.kind, (1, 1))
        )

        class Tiles:
            is_one_piece = together

            def catch(self, found: np.ndarray, first: int, count: int, more: np.ndarray) -> None:
                place = x.ctypes.data + 4 * first
                code.catch(found, [place], count // int(more[0]), (), more)

        for first in range(0, count, 3 * step):
            kept.add(Tiles(), first, min(3 * step, count - first))
        keys = x.view("<i4")[:count]
        for (below, own), one in zip(kept.found(), brackets, strict=True):
            assert below == np.count_nonzero(keys < one.low)
            assert own.tolist() == keys[(keys >= one.low) & (keys < one.end)].tolist()
        parts = np.split(keys, range(step, count, step))

        def places(key: int, tile: int) -> np.ndarray:
            return tile * step + np.flatnonzero(parts[tile] == key)

        for key in (5, 6, 20, 34, 38):
            at = np.flatnonzero(keys == key)
            for number, place in enumerate(at.tolist()):
                tile = place // step
                assert kept.tile_of(0, key, number) == (tile, np.count_nonzero(at < tile * step))
            band = KeyBand(key, GREATEST_KEY, (at[1], 1 << 62), (0, 1 << 62))
            inside = (keys > key) | ((keys == key) & (np.arange(count) >= at[1]))
            found = [own.sum() for own in np.split(inside, range(step, count, step))]
            assert kept.counts(0, band, places).tolist() == found
        if marking:
            bits = np.unpackbits(kept.marks(0, band)(0, count), bitorder="little")
            assert np.array_equal(bits[:count], inside)


class TestLastOfRows:
    @pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 352, 1001])
    @pytest.mark.parametrize(("code", "kind"), [("F32", "<f4"), ("F64", "<f8")])
    def test_are_brought_together_by_halves(self, count: int, code: str, kind: str) -> None:
        values = np.random.default_rng(count).standard_normal((3, count + 5)).astype(kind)
        expected = {"sums": halved_sum(values[:, :count]), "maxima": values[:, :count].max(axis=1)}
        for how, numbers in expected.items():
            x, found = values.copy(), np.zeros((3, 2))
            last = array_code(row_calls.last_text, how, code)
            last(found, [x], count, [3, count + 5, 2])
            assert np.array_equal(found[:, 0], numbers)
            assert np.array_equal(x[:, count:], values[:, count:])
        x, found = values.copy(), np.zeros(3)
        x[1, count // 2] = np.nan
        array_code(row_calls.last_text, "maxima", code)(found, [x], count, [3, count + 5, 1])
        assert np.isnan(found).tolist() == [False, True, False]


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


class TestCountsByTile:
    KEYS = Reduction(("F32",), (("key", (0,)),), (), "keys", (1,))
    PARTS, TILES = 16, 7

    @pytest.mark.parametrize("kept", [1 << 20, 2 * 16, 1])
    def test_tell_near_which_tile_a_key_lies(
        self, monkeypatch: pytest.MonkeyPatch, kept: int
    ) -> None:
        """However few numbers are kept: places of equal keys are looked for from there on."""
        monkeypatch.setattr(tiles, "_KEPT", kept)
        count = (self.TILES - 1) * BLOCK + 5
        keys = np.random.default_rng(0).integers(0, self.PARTS + 3, count, np.int32)

        class InMemory:
            stored, beside = (), None

            def read_elements(self, leaf: None, first: int, size: int, into: memoryview) -> None:
                into[: 4 * size] = keys[first : first + size].tobytes()

        reduced = tiles.ReducedTiles([None], InMemory(), self.KEYS, Given([]))
        (found,) = reduced.brackets(count, [Bracket(0, 1, 0, self.PARTS)])
        assert found.every == min(-(-self.PARTS * self.TILES // kept), self.PARTS * self.TILES)
        for part in (0, 7, self.PARTS - 1):
            places = np.flatnonzero(keys == 1 + part)
            for number in (0, len(places) // 2, len(places) - 1):
                tile, before = found.tile_of(part, number)
                assert 0 <= places[number] // BLOCK - tile < found.every
                assert before == np.count_nonzero(places < tile * BLOCK)


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


def reading_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets how many elements are read each time."""
    read, read_spans = InputFiles.read_elements, InputFiles.read_spans
    counts: list[int] = []

    def counted(self: InputFiles, leaf: object, first: int, count: int, into: object) -> None:
        counts.append(count)
        read(self, leaf, first, count, into)

    def spans_counted(self: InputFiles, leaf: object, spans: list, into: object) -> bool:
        done = read_spans(self, leaf, spans, into)
        counts.extend(count for _, count in spans if done)
        return done

    monkeypatch.setattr(InputFiles, "read_elements", counted)
    monkeypatch.setattr(InputFiles, "read_spans", spans_counted)
    return counts


def sampled(
    folder: Path, name: str, shape: tuple[int, ...], **values: object
) -> tuple[Models, ex.Call, torch.Tensor]:
    """Return models, the call that merges them by a method, and what that is in float32."""
    group = kernel_cases.ordinary(name, shape, dtype=torch.float16, **values)
    models = Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
    call = call_of(name, group, [models.source(model) for model in models.tensors])
    wide = [tensor.float() for tensor in group.tensors]
    expected = kernel_of(name, FLOAT32)[0](kernel_cases.replace(group, tensors=wide))
    return models, call, expected


#: A method that keeps what has some ranks, and one whose ranks depend on how many values are not 0.
CHOOSING = {
    "ties": {"density": 0.3, "rescale": False},
    "breadcrumbs": {"density": 0.3, "gamma": 0.1, "rescale": False},
    "sce": {"select_topk": 0.3},
}


class TestNumbersOfRows:
    """Rows of whole vectors have their numbers in tables, and their steps follow each other."""

    @pytest.mark.parametrize(
        ("name", "shape", "values"),
        [
            ("arcee_fusion", (37, 96), {}),
            ("arcee_fusion", (5, 11 * 512), {}),
            ("arcee_fusion", (1, 4096), {}),
            ("arcee_fusion", (2, BLOCK + 32), {}),
            ("model_stock", (37, 96), {"filter_wise": True}),
            ("nuslerp", (9, 2048), {"nuslerp_flatten": False}),
        ],
    )
    def test_bits_are_those_of_torch(
        self, tmp_path: Path, name: str, shape: tuple[int, ...], values: dict
    ) -> None:
        group = kernel_cases.ordinary(name, shape, dtype=torch.float16, **values)
        models = Models(
            tmp_path, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)}, odd=True
        )
        call = call_of(name, group, [models.source(model) for model in models.tensors])
        spec = models.spec({"v": ("F16", models.source("m0")), "w": ("F32", call)})
        with cases.tuned(windows=(12288,)):  # which no vector of the tensor begins with
            models.build(spec)
        wide = [tensor.float() for tensor in group.tensors]
        expected = kernel_of(name, FLOAT32)[0](kernel_cases.replace(group, tensors=wide))
        cases.assert_same(models.load()["w"], expected)

    def test_rows_are_read_once_for_all_steps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counts = reading_counted(monkeypatch)
        models, call, _ = sampled(tmp_path, "arcee_fusion", (64, 96))
        with cases.tuned(held=0):
            models.build(models.spec({"w": ("F16", call)}))
        # the rows, order statistics, and what is written
        assert sum(counts) == 3 * 2 * 64 * 96

    @pytest.mark.parametrize("code", ["F16", "F32"])
    def test_nan_and_infinity_stay_in_their_rows(self, tmp_path: Path, code: str) -> None:
        group = kernel_cases.ordinary("arcee_fusion", (6, 64), dtype=torch.float32)
        first, second = (tensor.clone() for tensor in group.tensors)
        first[1, 40], second[3, 5], first[4, 63] = math.nan, math.inf, -math.inf
        dtype = {"F16": torch.float16, "F32": torch.float32}[code]
        tensors = [first.to(dtype), second.to(dtype)]
        models = Models(tmp_path, {f"m{i}": {"w": t} for i, t in enumerate(tensors)})
        call = call_of("arcee_fusion", group, [models.source(model) for model in models.tensors])
        models.build(models.spec({"w": ("F32", call)}, allow_nonfinite=True))
        wide = [tensor.float() for tensor in tensors]
        expected = kernel_of("arcee_fusion", FLOAT32)[0](kernel_cases.replace(group, tensors=wide))
        cases.assert_same(models.load()["w"], expected)


class TestBrackets:
    VALUES = np.abs(np.random.default_rng(0).standard_normal(20_000)).astype("f4")

    def counted(self, passes: list[int], brackets: list[Bracket]) -> list:
        """Count keys as a pass does."""
        passes.append(len(brackets))
        keys, found = self.VALUES.view(np.int32).astype(np.int64), []
        for one in brackets:
            parts = (keys - one.low) >> one.shift
            there = parts[(parts >= 0) & (parts < one.parts)]
            table = np.bincount(there, minlength=one.parts)
            found.append((int((keys < one.low).sum()), table))
        return found

    @pytest.mark.parametrize("rank", [0, 1, 777, 10_000, 19_998, 19_999])
    @pytest.mark.parametrize("rows", [slice(0, 2000), slice(18_000, 20_000)])
    def test_are_right_though_the_sample_is_not(self, rank: int, rows: slice) -> None:
        """A sample of the least, or of the greatest, tells of places where no rank is."""
        sample = np.sort(self.VALUES)[rows].view(np.int32).reshape(4, -1)
        expected = int(np.sort(self.VALUES)[rank].view(np.int32))
        passes: list[int] = []
        keys = KeyPasses(20_000, 32, partial(self.counted, passes), lambda k: sample)
        found = find_keys([rank], keys)
        assert found == [expected]
        assert len(passes) <= 4

    def test_a_sample_makes_the_first_brackets_narrow(self) -> None:
        sample = self.VALUES[:8192].view(np.int32).reshape(32, -1)
        one = guess(0, 5000, 20_000, 32, sample, counted_coarsely(sample, 32))
        key = int(np.sort(self.VALUES)[5000].view(np.int32))
        assert one.low <= key < one.low + (one.parts << one.shift)
        inside = (one.low <= self.VALUES.view(np.int32)) & (
            self.VALUES.view(np.int32) < one.low + (one.parts << one.shift)
        )
        assert inside.mean() < 0.07

    def test_they_reach_beyond_a_part_near_whose_end_a_rank_is(self) -> None:
        """A sample is counted in parts. All runs have the least key, and differ within its part."""
        less = np.arange(128) < np.arange(32, 96)[:, None]
        sample = np.where(less, np.float32(1.004), np.float32(1.02)).view(np.int32)
        upto = counted_coarsely(sample, 32)
        for place in (less.sum() - 100, less.sum() + 100):
            one = guess(0, int(place), less.size, 32, sample, upto)
            assert one.low <= sample.min() and sample.max() < one.end

    @pytest.mark.parametrize("values", [VALUES, np.round(VALUES, 1)])
    def test_ranks_are_found_among_caught_keys(self, values: np.ndarray) -> None:
        """Of keys that are all apart, and of a few dozen that many elements have."""
        keys, passes = values.view(np.int32), []
        ranks, ordered = [5_000, 10_000, 15_000], np.sort(keys)

        def caught(brackets: list[Bracket], _: int) -> list[tuple[int, np.ndarray]]:
            return [
                (int((keys < one.low).sum()), keys[(one.low <= keys) & (keys < one.end)])
                for one in brackets
            ]

        sample = keys[:8192].reshape(32, -1)
        counted = partial(self.counted, passes)
        looked = KeyPasses(20_000, 32, counted, lambda k: sample, caught)
        found = find_keys(ranks, looked)
        assert found == ordered[ranks].tolist()
        assert not passes

    @pytest.mark.parametrize("spread", ["even", "few", "one", "skew", "odd"])
    def test_keys_in_a_bracket_may_lie_anyhow(self, spread: str) -> None:
        random, count = np.random.default_rng(4), 30_000
        keys = {
            "even": random.integers(0, 1 << 20, count),
            "few": random.integers(0, 7, count) * 149_000,
            "one": np.full(count, 77),
            "skew": (random.random(count) ** 40 * (1 << 20)).astype(np.int64),
            "odd": np.where(random.random(count) < 0.5, 3, (1 << 20) - 1),
        }[spread].astype(np.int32)
        ordered = np.sort(keys)
        for place in (0, 1, count // 3, count // 2, count - 2, count - 1):
            found = brackets._among(Bracket(0, 0, 0, 1 << 20), 5 + place, 5, keys)
            key = int(ordered[place])
            equal = np.count_nonzero(keys == key)
            assert found == Statistic(key, 5 + np.count_nonzero(keys < key), equal)

    @pytest.mark.parametrize("length", [8, 2040, 4096, 100])
    def test_masks_are_counted_row_by_row(self, length: int) -> None:
        mask = np.random.default_rng(1).random((3, length)) < 0.7
        mask[1] = True
        assert brackets._counted(mask).tolist() == np.count_nonzero(mask, axis=1).tolist()

    def test_brackets_of_large_tensors_have_a_part_for_each_key(self) -> None:
        sample = np.sort(self.VALUES[:8192].view(np.int32)).reshape(32, -1)
        wide, fine = (
            guess(0, count // 10, count, 32, sample, counted_coarsely(sample, 32))
            for count in (1 << 20, 1 << 25)
        )
        assert wide.shift > 0 and fine.shift < wide.shift
        sample = self.VALUES[:16384].view(np.int32).reshape(64, -1)
        near = guess(0, 1 << 24, 1 << 25, 32, sample, counted_coarsely(sample, 32))
        assert near.shift == 0 and near.parts > 1 << 18

    def test_rows_and_thresholds_are_found_in_one_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Few rows are read for the sample, all once for both, and once for what is written."""
        monkeypatch.setattr(tiles.ReducedTiles, "brackets", None)
        shape = (512, 1024)
        counts = reading_counted(monkeypatch)
        models, call, expected = sampled(tmp_path, "arcee_fusion", shape)
        models.build(models.spec({"w": ("F32", call)}))
        cases.assert_same(models.load()["w"], expected)
        assert sum(counts) < 2 * 2.3 * math.prod(shape)

    @pytest.mark.parametrize(("name", "passes"), [("ties", 2), ("breadcrumbs", 2), ("sce", 3)])
    def test_thresholds_are_found_in_one_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, passes: int
    ) -> None:
        """And how many values are not 0; of places of equal keys few elements are read again."""
        monkeypatch.setattr(tiles.ReducedTiles, "brackets", None)
        shape = (16 * 128, 1024)
        counts = reading_counted(monkeypatch)
        models, call, expected = sampled(tmp_path, name, shape, **CHOOSING[name])
        models.build(models.spec({"w": ("F32", call)}))
        cases.assert_same(models.load()["w"], expected)
        assert sum(counts) < len(models.tensors) * (passes + 0.4) * math.prod(shape)

    @pytest.mark.parametrize(
        ("name", "values"),
        [("sce", {"select_topk": 0.3}), ("ties", {"density": 0.3, "rescale": True})],
    )
    def test_what_is_chosen_is_read_by_the_bit(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        values: dict[str, object],
    ) -> None:
        """Of values that take long to make, or are made twice, no key is made again."""
        marks, found = caught.CaughtKeys.marks, []

        def marked(self: caught.CaughtKeys, k: int, band: KeyBand) -> BitMask | None:
            found.append(marks(self, k, band))
            return found[-1]

        monkeypatch.setattr(caught.CaughtKeys, "marks", marked)
        models, call, expected = sampled(tmp_path, name, (640, 1024), **values)
        models.build(models.spec({"w": ("F32", call)}))
        cases.assert_same(models.load()["w"], expected)
        kept = [np.unpackbits(mask.bits).sum() / expected.numel() for mask in found]
        assert kept == [pytest.approx(0.3, abs=1e-2)] * (1 if name == "sce" else 2)

    @pytest.mark.parametrize("name", ["arcee_fusion", *CHOOSING])
    @pytest.mark.parametrize("missed", ["a bracket is beside", "too many keys are in them"])
    def test_thresholds_that_are_not_caught_are_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missed: str, name: str
    ) -> None:
        if missed == "a bracket is beside":
            monkeypatch.setattr(brackets, "guess", lambda k, rank, *_: Bracket(k, 7, 0, rank + 1))
        else:
            monkeypatch.setattr(caught, "MOST_CAUGHT", 1000)
        values = CHOOSING.get(name, {})
        models, call, expected = sampled(tmp_path, name, (512, 1024), **values)
        models.build(models.spec({"w": ("F32", call)}))
        cases.assert_same(models.load()["w"], expected)

    @pytest.mark.parametrize("name", ["arcee_fusion", *CHOOSING])
    def test_sampled_tensors_have_the_bits_of_torch(self, tmp_path: Path, name: str) -> None:
        models, call, expected = sampled(tmp_path, name, (520, 1024), **CHOOSING.get(name, {}))
        models.build(models.spec({"w": ("F32", call)}))
        cases.assert_same(models.load()["w"], expected)


class TestRanksOfWhatIsNotZero:
    """Ranks may depend on how many values are not 0: the same pass counts them."""

    COUNT, SHARE = 1 << 15, 0.4

    @pytest.mark.parametrize("zeros", [0.0, 0.3, 0.999, 1.0])
    @pytest.mark.parametrize("sample", [None, "any", "ends"])
    def test_are_those_of_a_sort(self, zeros: float, sample: str | None) -> None:
        values = np.abs(np.random.default_rng(0).standard_normal(self.COUNT)).astype("<f4")
        # more and more of them are 0, so that runs differ
        values[
            np.random.default_rng(1).random(self.COUNT) < np.linspace(0, 2 * zeros, self.COUNT)
        ] = 0
        keys, passes = values.view(np.int32).astype(np.int64), []

        def counted(brackets: list[Bracket]) -> list[tuple[int, np.ndarray]]:
            passes.append(brackets)
            found = []
            for one in brackets:
                parts = (keys - one.low) >> one.shift
                there = parts[(parts >= 0) & (parts < one.parts)]
                found.append((int((keys < one.low).sum()), np.bincount(there, minlength=one.parts)))
            return found

        def ranks(nonzero: int) -> Ranks:
            return Ranks(0, int(nonzero * self.SHARE), descending=True)

        runs = values.view(np.int32).reshape(64, -1)[:, :256]
        told = {"any": lambda k: runs, "ends": lambda k: runs[:4], None: None}[sample]
        search = KeyPasses(self.COUNT, 32, counted, told)
        (band,), nonzero = find_bands(
            [ranks], search, lambda k, key, n: int(np.flatnonzero(keys == key)[n])
        )
        kept = int(np.count_nonzero(values) * self.SHARE)
        assert nonzero == {0: np.count_nonzero(values)}
        ends = map(band.bounds, range(self.COUNT))
        chosen = [low <= key <= high for key, (low, high) in zip(keys, ends, strict=True)]
        expected = np.zeros(self.COUNT, bool)
        expected[np.argsort(-values, kind="stable")[:kept]] = True
        assert np.array_equal(chosen, expected)
        # one that a sample misleads goes through all keys as without it
        assert len(passes) <= (3 if sample == "ends" else 2)


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
        monkeypatch.setattr(machine_code, "_processor", lambda: (cpu, "+f16c"))
        caches = native.native, native.array_code, reductions.native_reduction
        for cache in caches:
            cache.cache_clear()
        found = method_bytes.by_the_engine(tmp_path, {}, 1)
        for cache in caches:
            cache.cache_clear()
        assert found.items() <= method_bytes.GOLDEN["hashes"].items()
