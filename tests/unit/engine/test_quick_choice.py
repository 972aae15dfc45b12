"""Choices by torch's order, natively: the same elements, whatever is equal to what."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.sort_orders import bad_order
from shardmerge.engine import native, quick_choice, quick_parts, spilled, streamed_parts
from shardmerge.engine.choice_bounds import Boundaries
from shardmerge.engine.quick_choice import mask_like_torch, quick_mask, tensor_mask
from shardmerge.engine.quick_choice_text import NAN
from shardmerge.methods.kernels.masks import BitMask, mask_of
from shardmerge.methods.kernels.torch_choice import torch_mask
from shardmerge.methods.passes import KeyBand, Order, Ranks
from shardmerge.methods.program import torch_order_is_known

pytestmark = pytest.mark.skipif(
    not (native.is_usable() and torch_order_is_known()), reason="another order here"
)
KINDS = ("few", "half", "brain", "single", "one", "not numbers", "ascending")
COUNTS = (1, 2, 3, 4, 16, 17, 31, 64, 65, 100, 1000, 5000, 131_072, 200_001)


def numbers(kind: str, count: int) -> np.ndarray:
    """Return values that are not negative, float32 [count], of which none is 0."""
    random = np.random.default_rng(count)
    made = np.abs(random.standard_normal(count).astype("f4")) * 0.01 + np.float32(2**-20)
    match kind:
        case "few":
            made = np.ceil(made * 200)
        case "half":
            made = made.astype("f2").astype("f4")
        case "brain":
            made = (made.view("u4") & 0xFFFF0000).view("f4")
        case "one":
            made[:] = 0.5
        case "not numbers":
            made[::7], made[3::11] = np.nan, np.inf
            made[5::13] = np.uint32(0xFFC12345).view("f4")
        case "ascending":
            made = np.sort(made.astype("f2")).astype("f4")
    return made


def ends_of(values: np.ndarray, ranks: Ranks) -> KeyBand:
    """Return the keys of the first and of the last of some ranks."""
    keys = np.sort(values.view("u4") & 0x7FFFFFFF)[:: -1 if ranks.descending else 1]
    low, high = sorted(int(key) for key in keys[[ranks.start, ranks.stop - 1]])
    return KeyBand(low, high, (0, 0), (0, 0))


def chosen(values: np.ndarray, ranks: Ranks, order: Order) -> np.ndarray:
    band, keys = ends_of(values, ranks), values.view("u4") & 0x7FFFFFFF
    limits = Boundaries.of(ranks, len(values), band.low, band.high)
    mask = quick_mask(lambda i, n: keys[i : i + n], len(values), limits, order)
    return mask_of(mask(0, len(values)), len(values))


def torchs(values: np.ndarray, ranks: Ranks, order: Order) -> np.ndarray:
    return mask_of(torch_mask(torch.from_numpy(values), ranks, order)(0, len(values)), len(values))


def ranks_of(count: int) -> Iterator[tuple[Ranks, Order]]:
    third, few, tenth = (max(1, count // part) for part in (3, 80, 10))
    for stop in {third, few, max(1, count // 64), count, max(1, count - 1)}:
        yield Ranks(0, stop, descending=True), "sort"
        yield Ranks(0, stop, descending=True), "topk"
    middle = count // 2
    for start, stop in ((tenth, third), (third, count), (middle, middle + 1), (few, few + 2)):
        if start < stop <= count:
            yield Ranks(start, stop), "sort"


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_are_those_of_torch(kind: str, count: int) -> None:
    values = numbers(kind, count)
    for ranks, order in ranks_of(count):
        known = torchs(values, ranks, order)
        assert np.array_equal(chosen(values, ranks, order), known), (ranks, order)
        own = tensor_mask(torch.from_numpy(values).abs(), ranks, order)(0, count)
        assert np.array_equal(mask_of(own, count), known), (ranks, order)


@pytest.fixture(params=[(32, 64, 40), (64, 128, 200)])
def small_room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let few numbers be held; return which parts were made that are not."""
    grid, read, most = request.param
    monkeypatch.setattr(streamed_parts, "_GRID", grid)
    monkeypatch.setattr(streamed_parts, "READ", read)
    monkeypatch.setattr(quick_parts, "READ", read)
    monkeypatch.setattr(quick_parts, "chosen_at_once", lambda count: min(count, most))
    seen = []
    go, hold = streamed_parts.Parted.go, quick_parts._Choice._hold

    def went(parted, room, side):  # noqa: ANN001, ANN202
        kept = go(parted, room, side)
        assert kept is None or kept.count <= room.size
        seen.append("kept" if kept else "parted")
        return kept

    def held(choice, part):  # noqa: ANN001, ANN202
        seen.append("held" if part.count <= most else "more")
        return hold(choice, part)

    monkeypatch.setattr(streamed_parts.Parted, "go", went)
    monkeypatch.setattr(quick_parts._Choice, "_hold", held)
    return seen


@pytest.mark.parametrize("count", [301, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_need_not_be_held(small_room: list[str], kind: str, count: int) -> None:
    """The same is chosen where the first parts of a sort are found again when they are read."""
    values = numbers(kind, count)
    for ranks, order in ranks_of(count):
        known = torchs(values, ranks, order)
        assert np.array_equal(chosen(values, ranks, order), known), (ranks, order)
    assert {"parted", "kept"} & set(small_room) and "more" not in small_room


@pytest.mark.parametrize("kind", ["few", "half"])
def test_numbers_of_32_bits_are_enough_for_one_key_at_a_time(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where elements of two keys would need more, each key has a turn of its own."""
    monkeypatch.setattr(quick_choice, "CHOOSABLE", 1000)
    made = []
    choose = quick_parts.choose
    monkeypatch.setattr(quick_choice, "choose", lambda *a: made.append(a[2].open) or choose(*a))
    values = numbers(kind, 1000)
    for ranks in (Ranks(100, 300), Ranks(640, 700), Ranks(10, 990)):
        assert np.array_equal(chosen(values, ranks, "sort"), torchs(values, ranks, "sort"))
    assert len(made) > 3 and max(map(len, made)) == 1


@pytest.mark.parametrize("order", ["sort", "topk"])
def test_parts_that_fall_apart_are_put_in_a_heap(
    monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    """Equal ones among them too: each value occurs four times."""
    heaps = []
    made = quick_parts.array_code

    def counted(write, *how):  # noqa: ANN001, ANN002, ANN202
        heaps.append(write.__name__ == "heap_text")
        return made(write, *how)

    monkeypatch.setattr(quick_parts, "array_code", counted)
    values = np.ceil(bad_order(4000) / 4)
    if order == "topk":
        values = values.max() + 1 - values  # the largest are the first then
    for stop in (2900, 3001, 3500):
        ranks = Ranks(0, stop, descending=order == "topk")
        for one in (ranks, Ranks(0, 4000 - stop, descending=ranks.descending)):
            assert np.array_equal(chosen(values, one, order), torchs(values, one, order))
    assert any(heaps)


def test_zeros_are_not_chosen_between() -> None:
    """So nothing is sorted where many elements did not change."""
    values = np.where(np.arange(1000) % 3 == 0, numbers("half", 1000), 0).astype("f4")
    for ranks in (Ranks(0, 600, descending=True), Ranks(400, 900)):
        band = ends_of(values, ranks)
        limits = Boundaries.of(ranks, 1000, band.low, band.high)
        assert limits.begin == 0 and (limits.open == () or 0 not in limits.open)
        known, found = torchs(values, ranks, "sort"), chosen(values, ranks, "sort")
        assert np.array_equal(found[values > 0], known[values > 0])


def test_this_torch_is_known() -> None:
    assert quick_choice.is_torchs("sort") and quick_choice.is_torchs("topk")


@pytest.mark.parametrize("order", ["sort", "topk"])
@pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
def test_another_order_is_torchs(monkeypatch: pytest.MonkeyPatch, order: Order, code: str) -> None:
    """What is tried tells of another order, and torch is asked then."""
    monkeypatch.setitem(quick_parts._FEW, order, 40)
    quick_choice.is_torchs.cache_clear()
    assert not quick_choice.is_torchs(order)
    values, ranks = numbers("brain", 3000).astype("f2").astype("f4"), Ranks(0, 700, True)
    values = (values.view("u4") & 0xFFFF0000).view("f4")
    keys = values.view("u4")
    found = mask_like_torch(
        lambda i, n: keys[i : i + n], 3000, ranks, ends_of(values, ranks), order, code
    )
    assert np.array_equal(mask_of(found(0, 3000), 3000), torchs(values, ranks, order))
    quick_choice.is_torchs.cache_clear()


@pytest.mark.parametrize("descending", [False, True])
def test_what_is_told_of_keys(descending: bool) -> None:
    values = np.repeat(np.arange(1, 101, dtype="f4"), 3)
    ranks = Ranks(31, 251, descending)
    band = ends_of(values, ranks)
    limits = Boundaries.of(ranks, 300, band.low, band.high)
    sure, perhaps = limits.told(values.view("u4"))
    assert perhaps.sum() == 6 and sure.sum() == 3 * (82 - 10)
    assert limits.told(np.array([NAN + 5], "u4"))[0].tolist() == [False]


def test_masks_begin_anywhere() -> None:
    values = numbers("half", 5000)
    keys, ranks = values.view("u4"), Ranks(700, 3000)
    band = ends_of(values, ranks)
    limits = Boundaries.of(ranks, 5000, band.low, band.high)
    mask = quick_mask(lambda i, n: keys[i : i + n], 5000, limits, "sort")
    whole = mask_of(mask(0, 5000), 5000)
    for first, count in ((0, 1), (3, 70), (129, 3000), (4999, 1)):
        assert np.array_equal(mask_of(mask(first, count), count), whole[first : first + count])


class TestSpilled:
    """Masks of very large tensors lie in files: the same elements, and no file is left."""

    @pytest.fixture(autouse=True)
    def any_is_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spilled, "MASKED", 100)

    def mask(self, values: np.ndarray, ranks: Ranks, beside: Path | None) -> BitMask:
        band, keys = ends_of(values, ranks), values.view("u4") & 0x7FFFFFFF
        limits = Boundaries.of(ranks, len(values), band.low, band.high)
        return quick_mask(lambda i, n: keys[i : i + n], len(values), limits, "sort", beside)

    @pytest.mark.parametrize("kind", ["few", "half", "single"])
    @pytest.mark.parametrize("most", [None, 6000])
    def test_chooses_the_same(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, most: int | None
    ) -> None:
        if most:  # each key has a turn of its own
            monkeypatch.setattr(quick_choice, "CHOOSABLE", most)
        values, ranks = numbers(kind, 5000), Ranks(500, 2500)
        mask = self.mask(values, ranks, tmp_path)
        assert isinstance(mask.bits, spilled.FileBytes)
        known = torchs(values, ranks, "sort")
        for first, count in ((0, 5000), (17, 4000), (4990, 10)):
            assert np.array_equal(mask_of(mask(first, count), count), known[first : first + count])
            assert mask.number(first) == np.count_nonzero(known[:first])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("folder", [None, "missing"])
    def test_without_a_file_they_lie_in_memory(self, tmp_path: Path, folder: str | None) -> None:
        values, ranks = numbers("few", 5000), Ranks(500, 2500)
        mask = self.mask(values, ranks, folder and tmp_path / folder)
        assert isinstance(mask.bits, np.ndarray)
        assert np.array_equal(mask_of(mask(0, 5000), 5000), torchs(values, ranks, "sort"))

    def test_a_full_disk_is_noticed_before_any_bit_is_set(self, tmp_path: Path) -> None:
        """A page of a mapped file for which there is no room would end the process."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            mask = self.mask(numbers("few", 5000), Ranks(500, 2500), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(mask.bits, np.ndarray)
