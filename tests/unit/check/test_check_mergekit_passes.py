"""Checks of passes in mergekit numerics: of tensors of any size, and a fault is found."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from helpers import engine_cases, kernel_cases
from helpers.engine_cases import Models, call_of
from helpers.told_shard import Told
from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import MERGEKIT
from shardmerge.check import kernels, recompute, recorded
from shardmerge.check.recorded import _numbers
from shardmerge.check.shard import check_shard
from shardmerge.engine import choice_bounds, native, spilled
from shardmerge.engine.call_tiles import to_text
from shardmerge.engine.torch_tiles import TorchTiles
from shardmerge.engine.torch_whole import TorchVector
from shardmerge.methods.passes import GREATEST_KEY
from shardmerge.methods.program import torch_order_is_known
from shardmerge.methods.registry import methods

#: More than a tile of torch's, in rows and tiles that do not end together.
SHAPE = (131, 3001)
NAMES = [
    one.name for one in methods() if MERGEKIT in one.renderings and one.renderings[MERGEKIT].passes
]
pytestmark = pytest.mark.skipif(
    not (native.is_usable() and torch_order_is_known()), reason="no such passes here"
)
Built = tuple[Models, ShardSpec, dict[str, list[list[Any]]], Path]


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return models and a shard of a tensor of each method, which is built."""
    rows, tensors = {}, []
    groups = {
        name: kernel_cases.ordinary(
            name, SHAPE, 3, request.param, density=0.6, rescale=True, select_topk=0.5
        )
        for name in NAMES
    }
    tensors = max((group.tensors for group in groups.values()), key=len)
    made = {f"m{i}": {"w": tensor} for i, tensor in enumerate(tensors)}
    models = Models(tmp_path_factory.mktemp("built"), made)
    for name, group in groups.items():
        call = call_of(name, group, [models.source(f"m{i}") for i in range(len(group.tensors))])
        code = engine_cases.CODES[request.param]
        rows[name] = (code, replace(call, tensor=name))
    return recorded_of(models, models.spec(rows, numerics=MERGEKIT))


def recorded_of(models: Models, spec: ShardSpec) -> Built:
    """Build a shard."""
    return models, spec, dict(models.recorded(spec).passes), models.folder / "out.safetensors"


@pytest.fixture
def alone(built: Built, tmp_path: Path) -> Callable[..., Built]:
    """Return what makes the shard of one of these tensors, or of other values of it."""
    models, spec, passes, shard = built
    data = engine_cases.load(shard)

    def made(name: str, values: torch.Tensor | None = None) -> Built:
        path = tmp_path / f"{name}.safetensors"
        engine_cases.write_file(path, {name: data[name] if values is None else values})
        (tensor,) = (one for one in spec.tensors if one.name == name)
        return models, replace(spec, tensors=(tensor,)), {name: passes[name]}, path

    return made


def check(built: Built, **changes: list) -> dict[str, Any]:
    """Check the shard, with other records of some tensors."""
    models, spec, passes, shard = built
    return check_shard(spec, shard, models.paths, [], Told(passes=passes | changes))


def test_they_pass_whatever_their_size(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "WHOLE", 100)
    found = check(built)
    assert found["not_sampled"] == [] and found["undecided"] == 0


def test_masks_of_large_tensors_lie_in_files(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same, and so are checks, in which all of them are found again."""
    models, spec, passes, shard = built
    monkeypatch.setattr(spilled, "MASKED", 100)
    monkeypatch.setattr(choice_bounds, "_TOGETHER", 1000)
    monkeypatch.setattr(recorded, "is_looked_at_whole", lambda name: True)
    finished, files = spilled.Bits.finished, []

    def noted(bits: spilled.Bits) -> object:
        files.append(finished(bits))
        return files[-1]

    monkeypatch.setattr(spilled.Bits, "finished", noted)
    before = shard.read_bytes()
    assert models.recorded(spec).passes == passes
    built_so, made = len(files), shard.read_bytes()
    check(built)
    assert made == before
    assert 4 <= built_so < len(files)
    assert all(isinstance(file, spilled.FileBytes) for file in files)


def test_torch_has_no_threads_of_its_own(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = kernel_cases.divergence_threads(monkeypatch)
    kernels.load_torch.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    check(built)
    torch.set_num_threads(before)
    assert set(threads) == {1}


def test_few_tiles_are_added_up(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which sums cancel, so that all of their tiles must be, depends on the numbers."""
    monkeypatch.setattr(recorded, "spread_tiles", lambda name, number: [1])
    tiles = []
    add = TorchVector._add_all

    def counted(self: TorchVector, first: int, count: int) -> None:
        tiles.append(first)
        add(self, first, count)

    monkeypatch.setattr(TorchVector, "_add_all", counted)
    check(built)
    assert 0 < len(tiles) < 4 * sum(len(call) for calls in built[2].values() for call in calls)


def test_a_fault_is_found_in_each(built: Built, alone: Callable[..., Built]) -> None:
    for name, value in engine_cases.load(built[3]).items():
        check(alone(name))
        value.reshape(-1)[:200] *= 1.02
        with pytest.raises(UserError, match="must be"):
            check(alone(name, value))


@pytest.mark.parametrize("name", ["model_stock", "sce", "slerp", "nuslerp", "dare_linear"])
@pytest.mark.parametrize("part", [0, 1])
def test_other_sums_are_refused(alone: Callable[..., Built], name: str, part: int) -> None:
    """An answer that is another, and a tile's sum; text that is none."""
    built = alone(name)
    (call,) = built[2][name]
    place = next(i for i, one in enumerate(call) if isinstance(one, str) and " " in one)
    texts = call[place].split(" ")
    numbers = _numbers(texts[part])
    numbers *= 1.05  # of one tile only: that is seen if the tile is looked at
    for text in (to_text(numbers), "", "no numbers", to_text(numbers[1:])):
        both = [text if i == part else other for i, other in enumerate(texts)]
        changed = [" ".join(both) if i == place else one for i, one in enumerate(call)]
        with pytest.raises(UserError, match="recorded that are not those of the sources"):
            check(built, **{name: [changed]})


@pytest.mark.parametrize("part", [0, 1])
def test_other_quantiles_are_refused(alone: Callable[..., Built], part: int) -> None:
    """Values that are near, and numbers of what lies below them; text that is none."""
    built = alone("arcee_fusion")
    ((rows, found),) = built[2]["arcee_fusion"]
    texts = found.split(" ")
    numbers = _numbers(texts[part])
    near = numbers * (1 + 1e-7) if part == 0 else numbers + 1
    for text in (to_text(near), to_text(numbers[::-1]), "", "no numbers", to_text(numbers[1:])):
        changed = " ".join(text if i == part else other for i, other in enumerate(texts))
        with pytest.raises(UserError, match="recorded that are not those of the sources"):
            check(built, arcee_fusion=[[rows, changed]])


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties", "sce"])
class TestChoices:
    """What is recorded of choices by torch's order."""

    @staticmethod
    def place(call: list) -> int:
        return next(i for i, one in enumerate(call) if isinstance(one, list))

    @pytest.fixture
    def one(self, alone: Callable[..., Built], name: str) -> Built:
        return alone(name)

    def refused(self, built: Built, name: str, row: Any, match: str) -> None:
        (call,) = built[2][name]
        place = self.place(call)
        rows = [row, *call[place][1:]]
        changed = [rows if i == place else one for i, one in enumerate(call)]
        with pytest.raises(UserError, match=f"{match} of whole tensors are recorded"):
            check(built, **{name: [changed]})

    @pytest.fixture(autouse=True)
    def not_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recorded, "is_looked_at_whole", lambda name: False)

    def test_other_thresholds_are_refused(self, one: Built, name: str) -> None:
        low, high, text = one[2][name][0][self.place(one[2][name][0])][0]
        for row in ([low + 1, high, text], [low, "x", text], [low, high], [-1, high, text], 3):
            self.refused(one, name, row, "thresholds")

    def test_other_bits_are_refused(self, one: Built, name: str) -> None:
        """Too few and none; of the right number, what is computed of them is another."""
        low, high, text = one[2][name][0][self.place(one[2][name][0])][0]
        for other in ("", text[:-4], "no bits", text + "AAAA"):
            self.refused(one, name, [low, high, other], "choices")
        data = bytes(255 - one for one in base64.b64decode(text))
        (call,) = one[2][name]
        row = [low, high, base64.b64encode(data).decode()]
        place = self.place(call)
        rows = [row, *call[place][1:]]
        changed = [rows if i == place else one for i, one in enumerate(call)]
        with pytest.raises(UserError):
            check(one, **{name: [changed]})

    def test_of_some_tensors_they_are_made_again(
        self, one: Built, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(recorded, "is_looked_at_whole", lambda name: True)
        check(one)
        low, high, text = one[2][name][0][self.place(one[2][name][0])][0]
        data = bytearray(base64.b64decode(text))
        data[0] ^= 64
        self.refused(one, name, [low, high, base64.b64encode(data).decode()], "choices")

    def test_of_these_tensors_each_element_tells_of_thresholds(
        self, one: Built, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """Even where counts of tiles say nothing: another number of elements is chosen."""
        monkeypatch.setattr(recorded, "is_looked_at_whole", lambda name: True)
        monkeypatch.setattr(recorded.RecordedPasses, "_are_there", lambda *_: True)
        monkeypatch.setattr(recorded, "open_bits", lambda *_: mock.ANY)
        low, high, text = one[2][name][0][self.place(one[2][name][0])][0]
        check(one)
        for step in (1 << 16, -(1 << 16)):
            row = [low + step, min(high + step, GREATEST_KEY), text]
            self.refused(one, name, row, "choices")

    def test_only_few_are_made_again(
        self, one: Built, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(recorded.RecordedPasses, "_choose", lambda *_: pytest.fail("chosen"))
        check(one)


@pytest.mark.parametrize("order", [[7, 3, rows.ZERO, 3, 39], [rows.ZERO] * 3])
def test_rows_of_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    """They are made by numpy, and a fault of one of them is found."""
    group = kernel_cases.ordinary("nuslerp", (40, 64), 2, torch.float16)
    models = Models(tmp_path, {f"m{i}": {"w": one} for i, one in enumerate(group.tensors)})
    call = call_of("nuslerp", group, [models.source(f"m{i}") for i in range(len(group.tensors))])
    taken = ex.Rows(call, rows.format_rows(order))
    built = recorded_of(models, models.spec({"w": ("F16", taken)}, numerics=MERGEKIT))
    monkeypatch.setattr(recompute, "Stated", None)
    assert check(built)["elements"] == len(order) * 64
    made = models.load()["w"]
    made[-1, -1] += 1
    other = engine_cases.write_file(tmp_path / "other.safetensors", {"w": made})
    with pytest.raises(UserError):
        check((*built[:3], other))


@pytest.fixture(scope="module")
def by_columns(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return models and a built shard of a tensor whose columns are added up."""
    group = kernel_cases.ordinary(
        "nuslerp", (300, 640), 2, torch.float16, nuslerp_flatten=False, nuslerp_row_wise=True
    )
    made = {f"m{i}": {"w": tensor} for i, tensor in enumerate(group.tensors)}
    models = Models(tmp_path_factory.mktemp("columns"), made)
    call = call_of("nuslerp", group, [models.source(f"m{i}") for i in range(len(made))])
    return recorded_of(
        models, models.spec({"w": ("F16", replace(call, tensor="w"))}, numerics=MERGEKIT)
    )


def test_few_columns_are_added_up(by_columns: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    added = []
    add = TorchTiles._add

    def counted(self: TorchTiles, sums: Any, first: int, count: int) -> None:
        added.append(count)
        add(self, sums, first, count)

    monkeypatch.setattr(TorchTiles, "_add", counted)
    assert check(by_columns)["undecided"] == 0
    assert 0 < sum(added) < 300 * 640


def test_other_sums_of_columns_are_refused(by_columns: Built) -> None:
    (call,) = by_columns[2]["w"]
    for place, text in enumerate(call):
        numbers = _numbers(text, "<f4")
        assert len(numbers) == (2, 1)[place] * 640
        for other in (to_text(numbers * 1.01, "<f4"), "", "none", to_text(numbers[1:], "<f4")):
            changed = [other if i == place else one for i, one in enumerate(call)]
            with pytest.raises(UserError, match="recorded that are not those of the sources"):
                check(by_columns, w=[changed])
