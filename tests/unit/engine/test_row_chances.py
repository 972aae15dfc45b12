"""What is chosen by ranks in rows: by native code as by numpy's sorts, and the numbers beside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.sort_orders import bad_order
from shardmerge.engine import native, quick_ranks
from shardmerge.engine.assembly import LANES
from shardmerge.engine.chance_turns import ReadValues
from shardmerge.engine.chances import chosen_by_chance
from shardmerge.engine.philox import native_stream
from shardmerge.engine.reductions import native_reduction
from shardmerge.engine.row_chances import DrawnRowMasks, native_choice
from shardmerge.engine.row_ranks import native_ranks
from shardmerge.methods.kernels import masks
from shardmerge.methods.kernels.execute import torch_ranks
from shardmerge.methods.kernels.keys import RandomStream
from shardmerge.methods.kernels.ranks import RowMasks, choice_by, ranks_along
from shardmerge.methods.passes import Chances, RowChances
from shardmerge.methods.program import Reduction

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")
ODD = np.array([np.inf, np.nan, 0.0, 1e-45, 3e38, 1.0, 1e-3], "f4")


def changes(kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Return magnitudes of differences as float32."""
    random = np.random.default_rng(5)
    first = random.standard_normal(shape).astype("f4") * 0.02
    second = first + random.standard_normal(shape).astype("f4") * 0.001
    if kind == "float16":
        first, second = first.astype("f2").astype("f4"), second.astype("f2").astype("f4")
    if kind in ("bfloat16", "few"):
        first, second = (
            (x.view("u4") & (0xFFFF0000 if kind == "bfloat16" else 0xFF000000)).view("f4")
            for x in (first, second)
        )
    made = np.abs(second - first)
    if kind == "odd":
        made.reshape(-1)[::5] = np.resize(ODD, made.reshape(-1)[::5].shape)
    if kind == "zeros":
        made[random.random(shape) < 0.9] = 0
    if kind == "all equal":
        made[:] = 0.25
    if kind == "far apart":
        made = np.abs(random.standard_cauchy(shape) ** 9 % 1e38).astype("f4")
    return made


KINDS = ("float16", "bfloat16", "few", "float32", "odd", "zeros", "all equal", "far apart")


def bounds_of(length: int, low: float = 0.35, high: float = 0.65) -> np.ndarray:
    return np.ceil(np.linspace(low, high, length) * 2.0**32).astype(np.uint64)


def numbers_of(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(6).integers(0, 1 << 32, shape, np.uint32)


class TestChoice:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(5, 1), (3, 2), (40, 33), (7, 2048), (3, 5000), (1, 70001)])
    def test_is_that_of_numpy(self, kind: str, shape: tuple[int, int]) -> None:
        values, numbers = changes(kind, shape), numbers_of(shape)
        bounds = bounds_of(shape[1])
        expected = choice_by(ranks_along, bounds)(values, numbers)
        assert np.array_equal(native_choice(bounds)(values, numbers), expected)

    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (1.0, 1.0), (0.7, 0.2), (0.0, 0.0)])
    def test_bounds_at_the_ends_and_falling(self, bounds: tuple[float, float]) -> None:
        values, numbers = changes("bfloat16", (4, 300)), numbers_of((4, 300))
        numbers[0, ::2], numbers[1, ::2] = 0, (1 << 32) - 1
        table = bounds_of(300, *bounds)
        expected = choice_by(ranks_along, table)(values, numbers)
        assert np.array_equal(native_choice(table)(values, numbers), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_where_equals_decide_another_sort_is_asked_for_their_rows_alone(
        self, kind: str
    ) -> None:
        asked = []

        def last_first(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            """Return ranks where of equal values the last has the lowest; of others none."""
            asked.append(len(rows))
            return np.where(wanted, ranks_along(rows[:, ::-1])[:, ::-1], 1 << 40)

        shape = (30, 700)
        values, numbers, bounds = changes(kind, shape), numbers_of(shape), bounds_of(shape[1])
        found = native_choice(bounds, last_first)(values, numbers)
        rows = sum(asked)
        every = np.ones(shape, bool)
        expected = choice_by(lambda x: last_first(x, every), bounds)(values, numbers)
        assert np.array_equal(found[values != 0], expected[values != 0])
        if kind == "float32":
            assert rows == 0

    @pytest.mark.parametrize("shape", [(3, 7), (5, 33), (2, 5000), (1, 66000)])
    @pytest.mark.parametrize("kind", KINDS)
    def test_ranks_are_those_of_numpy(self, kind: str, shape: tuple[int, int]) -> None:
        values = changes(kind, shape)
        assert np.array_equal(native_ranks(values), ranks_along(values))


class TestMasks:
    @pytest.mark.parametrize("shape", [(40, 33), (9, 20, 3), (600,), (2, 1, 5)])
    @pytest.mark.parametrize(("room", "little"), [(0, False), (1 << 20, False), (0, True)])
    def test_of_any_stretch(
        self, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], room: int, little: bool
    ) -> None:
        """Rows of the second dimension, whatever comes after it, kept or found each time."""
        monkeypatch.setattr(masks, "_KEPT", masks._Kept(room))
        values = changes("bfloat16", (1, int(np.prod(shape)))).reshape(-1)
        length = shape[1] if len(shape) > 1 else shape[0]
        stream, table = RandomStream((3, 4)), bounds_of(length)
        wanted = RowChances(lambda x: [], (stream,), (table,))
        made = RowMasks(
            lambda spans: [np.concatenate([values[first : first + size] for first, size in spans])],
            wanted, shape, [native_choice(table)], together=130, little=little,
        )  # fmt: skip
        (mask,) = made.masks()
        rows = (
            np.moveaxis(values.reshape(*shape[:1], length, -1), 1, 2) if len(shape) > 1 else values
        )
        order = np.argsort(np.argsort(rows, axis=-1, kind="stable"), axis=-1)
        order = np.moveaxis(order, 2, 1) if len(shape) > 1 else order
        expected = stream(0, values.size) < table[order.reshape(-1)]
        for _ in range(2):
            spans = [(first, min(71, values.size - first)) for first in range(0, values.size, 71)]
            parts = [masks.mask_of(mask(*span), span[1]) for span in spans]
            assert np.array_equal(np.concatenate(parts), expected)

    #: Of two values: the second's keys, then the first's.
    KEYS = Reduction(("F32", "F32"), (("key", (1,)), ("key", (0,))), (), "bits", (2, 3))

    @pytest.mark.parametrize("little", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(40, 33), (700, 1000), (3, 20_001), (70_000,), (50, 1)])
    def test_numbers_are_made_and_compared_in_turns(
        self, kind: str, shape: tuple[int, ...], little: bool
    ) -> None:
        """Of all elements, and of single rows, also where ranks have to be found by sorting."""
        count, length = int(np.prod(shape)), shape[-1]
        first = changes(kind, (1, count)).reshape(-1)
        values = np.ascontiguousarray(first[::-1]), first
        streams, table = (RandomStream((3, 4)), RandomStream((5, 6))), bounds_of(length)
        wanted = RowChances(lambda x: [], streams, (table, bounds_of(length, 0.1, 0.9)))
        kept: list[np.ndarray] = []

        def of(spans: list[masks.ElementSpan]) -> list[np.ndarray]:
            return [np.concatenate([x[at : at + size] for at, size in spans]) for x in values]

        def read(spans: list[masks.ElementSpan]) -> ReadValues:
            kept[:] = [np.append(x, np.zeros(LANES, "f4")) for x in of(spans)[::-1]]
            code = native_reduction(self.KEYS).address(1)
            return ReadValues(code, [native.place_of(x) for x in kept], [4, 4], ())

        drawn = tuple(map(native_stream, streams))
        made = DrawnRowMasks(
            of, read, RowChances(wanted.function, drawn, wanted.bounds), shape,
            [native_choice(one) for one in wanted.bounds], little=little,
        ).masks()  # fmt: skip
        for mask, x, stream, one in zip(made, values, streams, wanted.bounds, strict=True):
            rows = x.reshape(-1, length)
            numbers = stream(0, count).reshape(rows.shape)
            expected = choice_by(ranks_along, one)(rows, numbers).reshape(-1)
            for runs in ([(0, count)], [(count // 3, 5), (count - 4, 4)], [(7, count // 2)]):
                some = np.concatenate([expected[at : at + size] for at, size in runs])
                assert np.array_equal(masks.mask_of_runs(mask, runs), some)

    @pytest.mark.parametrize("step", [13, 16])
    def test_groups_are_found_together(self, step: int) -> None:
        """Where groups are single rows, as in checks: each call takes longer than a row."""
        count, asked = 1000, []
        whole = np.random.default_rng(1).random(count) < 0.5

        def find(spans: list[masks.ElementSpan]) -> list[np.ndarray]:
            asked.append(spans)
            parts = [whole[first : first + size] for first, size in spans]
            return [masks.bits_of(np.concatenate(parts))]

        (mask,) = masks.KeptMasks(find, step, count).masks(1)
        for runs in ([(2 * step, 5), (3 * step + 1, 7), (count - 3, 3)], [(3, 90)], [(0, count)]):
            wanted = np.concatenate([whole[first : first + size] for first, size in runs])
            assert np.array_equal(masks.mask_of_runs(mask, runs), wanted)
        first, second, third = asked
        last = count // step * step
        assert first == [(2 * step, 2 * step), (last, count - last)]
        assert second[0] == (0, 2 * step) and len(second) == 2
        assert len(third) == 1 and sum(third[0]) == last

    def test_room_is_for_the_last_tensor(self) -> None:
        kept, bits = masks._Kept(100), np.zeros(10, np.uint8)
        for begin in range(8):
            kept.put(1, begin, [bits])
        for begin in range(30):
            kept.put(2, begin, [bits])
        assert all(kept.get(1, begin) is None for begin in range(8))
        there = [begin for begin in range(30) if kept.get(2, begin)]
        assert there[:6] == list(range(6)) and len(there) == 10 and there[-1] == 29


class TestChances:
    """Of what is chosen by chance, whatever its rank."""

    COUNT = 300_007

    @pytest.mark.parametrize("bound", [0, 1, 1 << 31, (1 << 32) - 1, 1 << 32])
    @pytest.mark.parametrize("length", [100, 50_003])
    def test_of_any_stretch(self, bound: int, length: int) -> None:
        stream = RandomStream((3, 4))
        whole = stream(0, self.COUNT) < bound
        _, mask = chosen_by_chance(Chances((RandomStream((1, 2)), stream), (7, bound)), self.COUNT)
        for first in range(0, self.COUNT, 3 * length):
            count = min(length, self.COUNT - first)
            found = masks.mask_of(mask(first, count), count)
            assert np.array_equal(found, whole[first : first + count])

    def test_numbers_are_made_once(self) -> None:
        stream, asked = RandomStream((3, 4)), []

        def numbers(first: int, count: int) -> np.ndarray:
            asked.append(count)
            return stream(first, count)

        (mask,) = chosen_by_chance(Chances((numbers,), (1 << 30,)), self.COUNT)
        for length in (1 << 17, 90_001, 1 << 16):
            for first in range(0, self.COUNT, length):
                mask(first, min(length, self.COUNT - first))
        assert sum(asked) == self.COUNT

    def test_few_are_made_by_themselves(self) -> None:
        asked = []

        def numbers(first: int, count: int) -> np.ndarray:
            asked.append(count)
            return np.zeros(count, np.uint32)

        (mask,) = chosen_by_chance(Chances((numbers,), (1,)), self.COUNT, little=True)
        mask(200_000, 64)
        assert asked == [64]

    def test_few_are_the_same(self) -> None:
        stream = RandomStream((3, 4))
        whole = stream(0, self.COUNT) < 1 << 31
        wanted = Chances((RandomStream((1, 2)), stream), (7, 1 << 31))
        _, mask = chosen_by_chance(wanted, self.COUNT, little=True)
        for runs in (
            [(0, 128), (256, 128), (384, 100), (self.COUNT - 7, 7)],
            [(3, 1000), (150_001, 140_000)],
            [(0, self.COUNT)],
        ):
            expected = np.concatenate([whole[first : first + count] for first, count in runs])
            assert np.array_equal(masks.mask_of_runs(mask, runs), expected)
            parts = [masks.mask_of(mask(*run), run[1]) for run in runs]
            assert np.array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("first", [0, 3, 8, 131072 - 5, 8 * (1 << 40) + 2])
@pytest.mark.parametrize("count", [1, 7, 8, 1000])
def test_streams_are_those_of_numpy(first: int, count: int) -> None:
    for key in ((0, 0), ((1 << 64) - 1, 0x9E3779B97F4A7C15)):
        stream = RandomStream(key)
        assert np.array_equal(native_stream(stream)(first, count), stream(first, count))


class TestQuickRanks:
    """Those of torch's sort, which is not stable."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("shape", [(5, 1), (30, 16), (30, 17), (7, 300), (3, 5000), (1, 40000)])
    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
    def test_are_those_of_torch(self, kind: str, shape: tuple[int, int], name: str) -> None:
        dtype = getattr(torch, name)
        values = torch.from_numpy(changes(kind, shape)).to(dtype).float().numpy()
        expected = torch_ranks(values, dtype)
        random = np.random.default_rng(1)
        for share in (1.0, 4 / shape[1], 0.0):
            wanted = random.random(shape) < share
            found = quick_ranks.ranks_like_torch(values, wanted, dtype)
            assert np.array_equal(found[wanted], expected[wanted])

    def test_this_torch_is_known(self) -> None:
        assert quick_ranks._is_torchs(torch.float16) and quick_ranks._is_torchs(torch.bfloat16)

    def test_another_sort_is_torchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is tried tells stable ranks from these, and torch is asked then."""
        monkeypatch.setattr(
            quick_ranks, "_quick_ranks", lambda x, _: (ranks_along(x), np.ones(len(x), np.uint8))
        )
        quick_ranks._is_torchs.cache_clear()
        assert not quick_ranks._is_torchs(torch.float16)
        values = changes("few", (3, 200))
        found = quick_ranks.ranks_like_torch(values, values > 0, torch.float16)
        assert np.array_equal(found, torch_ranks(values, torch.float16))
        quick_ranks._is_torchs.cache_clear()

    def test_rows_that_fall_apart_are_torchs(self) -> None:
        """An order in which every median is one of the least, made by the sort itself."""
        length = 3000
        values = bad_order(length)
        _, done = quick_ranks._quick_ranks(values[None], np.ones((1, length), bool))
        assert not done[0]
        found = quick_ranks.ranks_like_torch(values[None], values[None] >= 0, torch.float32)
        assert np.array_equal(found, torch_ranks(values[None], torch.float32))
