"""Passes of mergekit numerics: the bits of the kernels that get whole tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import engine_cases, kernel_cases
from helpers.engine_cases import Models, call_of
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import MERGEKIT
from shardmerge.engine import native, native_lane
from shardmerge.engine.mersenne import native_fill
from shardmerge.methods.blending import mergekit
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.mersenne import Fill, Mersenne, numpy_fill
from shardmerge.methods.kernels.torch_order import torch_sums
from shardmerge.methods.passes import TorchSums
from shardmerge.methods.program import torch_order_is_known
from shardmerge.methods.registry import Group, kernel_of, methods

NAMES = [
    one.name for one in methods() if MERGEKIT in one.renderings and one.renderings[MERGEKIT].passes
]
NARROW = (torch.float16, torch.bfloat16, torch.float32)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not torch_order_is_known(), reason="torch adds otherwise here"),
]


def built(folder: Path, name: str, group: Group, tag: str = "out") -> torch.Tensor:
    """Return what the engine makes of a group in mergekit numerics."""
    models = Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
    call = call_of(name, group, [models.source(model) for model in models.tensors])
    expected = kernel_of(name, MERGEKIT)[0](group)
    code = engine_cases.CODES[expected.dtype]
    spec = models.spec({"w": (code, call)}, numerics=MERGEKIT, allow_nonfinite=True)
    models.build(spec, f"{tag}.safetensors")
    return models.load(f"{tag}.safetensors")["w"]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NAMES)
class TestBits:
    @pytest.mark.parametrize("shape", [(300, 520), (1013,), (70, 4099)])
    def test_of_the_kernel(
        self, tmp_path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        group = kernel_cases.ordinary(
            name, shape, 3, dtype, density=0.6, weight=0.3, rescale=True, select_topk=0.5
        )
        expected = kernel_of(name, MERGEKIT)[0](group)
        assert kernel_cases.differing(built(tmp_path, name, group), expected) == 0

    def test_by_torch_where_there_is_no_native_code(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(native, "is_usable", lambda: False)
        group = kernel_cases.ordinary(name, (301, 521), 2, dtype, density=0.3, rescale=True)
        expected = kernel_of(name, MERGEKIT)[0](group)
        assert kernel_cases.differing(built(tmp_path, name, group), expected) == 0


@pytest.mark.parametrize("name", NAMES)
class TestAnyParameters:
    @given(data=st.data())
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_bits_of_the_kernel(
        self, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
    ) -> None:
        group = data.draw(kernel_cases.groups(name, NARROW, models=4))
        try:
            expected = kernel_of(name, MERGEKIT)[0](group)
        except (UserError, RuntimeError):
            return
        found = built(tmp_path_factory.mktemp("built"), name, group)
        assert kernel_cases.differing(found, expected) == 0


BY_ROWS = [
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
    ("arcee_fusion", {}),
]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("name", "values"), BY_ROWS)
class TestRows:
    @pytest.mark.parametrize(
        "shape", [(300, 520), (130, 3072), (70, 4099), (3, 140_000), (7, 9, 33)]
    )
    def test_bits_of_the_kernel(
        self, tmp_path: Path, name: str, values: dict, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        group = kernel_cases.ordinary(name, shape, 3, dtype, **values)
        group.tensors[-1][:2] = group.tensors[-2][:2]  # some are parallel
        expected = kernel_of(name, MERGEKIT)[0](group)
        assert kernel_cases.differing(built(tmp_path, name, group), expected) == 0

    def test_by_torch_where_there_is_no_native_code(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        values: dict,
        dtype: torch.dtype,
    ) -> None:
        monkeypatch.setattr(native, "is_usable", lambda: False)
        group = kernel_cases.ordinary(name, (301, 521), 2, dtype, **values)
        expected = kernel_of(name, MERGEKIT)[0](group)
        assert kernel_cases.differing(built(tmp_path, name, group), expected) == 0


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("native_code", [True, False])
def test_quantiles_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, native_code: bool
) -> None:
    """Of more elements than are looked at, random ones tell of quantiles, some of them twice."""
    monkeypatch.setattr(mergekit, "SAMPLE", 10_000)
    if not native_code:
        monkeypatch.setattr(native, "is_usable", lambda: False)
    group = kernel_cases.ordinary("arcee_fusion", (301, 1031), dtype=dtype)
    expected = kernel_of("arcee_fusion", MERGEKIT)[0](group)
    assert kernel_cases.differing(built(tmp_path, "arcee_fusion", group), expected) == 0
    assert (expected != group.tensors[0]).any() and (expected != group.tensors[1]).any()


def test_norms_and_products_take_one_pass(tmp_path: Path) -> None:
    group = kernel_cases.ordinary("model_stock", (301, 1031), 2, torch.float16)
    models = Models(tmp_path, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
    call = call_of("model_stock", group, [models.source(model) for model in models.tensors])
    with engine_cases.tuned(held=0):
        record = models.build(models.spec({"w": ("F16", call)}, numerics=MERGEKIT))
    assert record.bytes_read == 2 * sum(one.nbytes for one in group.tensors)


def test_torch_has_no_threads_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where native code makes the elements too: they would be in each other's way."""
    threads = kernel_cases.divergence_threads(monkeypatch)
    torch.set_num_threads(2)
    built(tmp_path, "arcee_fusion", kernel_cases.ordinary("arcee_fusion", (301, 1031)))
    of_the_kernel, *of_the_engine = threads
    assert of_the_kernel == 2 and set(of_the_engine) == {1}


def test_what_fills_the_last_vector_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is divided by numbers of rows that are none: only elements may be infinite or NaN."""
    monkeypatch.setattr(native_lane.NativeLane, "_inspect", lambda *_: pytest.fail("looked at"))
    group = kernel_cases.ordinary("nuslerp", (70, 1003), nuslerp_flatten=False)
    built(tmp_path, "nuslerp", group)


CODES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class TestTorchOrder:
    @staticmethod
    def numbers(shape: tuple[int, ...], code: str) -> torch.Tensor:
        random = torch.Generator().manual_seed(sum(shape))
        return (torch.randn(shape, generator=random) + 0.01).to(CODES[code])

    @staticmethod
    def found(values: torch.Tensor, code: str, axis: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums and norms of pieces."""
        single = values.float().flatten().numpy()

        def feed(sums: list, first: int, size: int) -> None:
            sums[0].add(single[first : first + size])

        total, norm = (
            torch_sums(feed, values.shape, [code], TorchSums(lambda x: [], kind, axis=axis))[0]
            for kind in ("sum", "norm")
        )
        return torch.from_numpy(total), torch.from_numpy(norm)

    @pytest.mark.parametrize("code", CODES)
    @pytest.mark.parametrize(
        "count", [1, 7, 8, 33, 63, 64, 512, 1023, 20000, BLOCK, BLOCK + 1, 2**21 + 77, 2**22 - 1]
    )
    def test_sums_and_norms(self, code: str, count: int) -> None:
        values = self.numbers((count,), code)
        total, norm = self.found(values, code, "all")
        assert (total, norm) == (float(values.sum()), float(torch.norm(values)))

    @pytest.mark.parametrize("code", CODES)
    @pytest.mark.parametrize("count", [*range(2, 8), 9, 11, 13, 15, 17, 23, 31])
    def test_of_few_elements(self, code: str, count: int) -> None:
        """Many at once, since the order changes few of them."""
        self.compare(self.numbers((2000, count), code), code, "last")

    @pytest.mark.parametrize("code", CODES)
    @pytest.mark.parametrize("axis", ["last", "first"])
    @pytest.mark.parametrize(
        "shape",
        [
            *((17, 33), (40, 64), (300, 4), (300, 7), (300, 17), (5, 4), (1, 100), (100, 1)),
            *((2000, 100), (64, 1024), (9, 3000), (3, 200_000), (2000, 3)),
            *((6, 5, 3, 2), (2, 3, 4, 1), (7, 20, 300), (7, 3, 33), (33, 1, 70, 1), (9, 1, 1, 5)),
        ],
    )
    def test_of_rows_and_columns(self, code: str, axis: str, shape: tuple[int, ...]) -> None:
        self.compare(self.numbers(shape, code), code, axis)

    def compare(self, values: torch.Tensor, code: str, axis: str) -> None:
        """Show that sums and norms are torch's."""
        given = values.transpose(0, -1) if axis == "first" else values
        for own, function in zip(
            self.found(values, code, axis), (torch.sum, torch.norm), strict=True
        ):
            whole = function(given, dim=-1, keepdim=True).squeeze(-1)
            if axis == "first":
                whole = whole.movedim(0, -1)
            assert torch.equal(own, whole.flatten().double())


class TestMersenne:
    @pytest.mark.parametrize("fill", [native_fill, numpy_fill])
    def test_torch_draws_the_same_in_any_order(self, fill: Fill) -> None:
        seed = 0x7123456789ABCDEF
        random = torch.Generator().manual_seed(seed)
        expected = torch.rand(700_000, generator=random)
        numbers = Mersenne(seed, fill)
        for first, count in ((0, 5), (5, 1000), (640_000, 60_000), (3, 3000), (130_000, 131_072)):
            found = numbers(first, count) * np.float32(2.0**-24)
            assert np.array_equal(found, expected[first : first + count].numpy())

    @pytest.mark.parametrize("fill", [native_fill, numpy_fill])
    def test_spans_are_those_that_are_asked_for_one_by_one(self, fill: Fill) -> None:
        spans = [
            (0, 5),
            (5, 1),
            (620, 10),
            (1250, 2000),
            (640_000, 3),
            (640_003, 700),
            (800_000, 9),
        ]
        numbers, alone = Mersenne(7, fill), Mersenne(7, fill)
        expected = [alone(*span) for span in spans]
        for _ in range(2):  # from the beginning, then from states that are remembered
            assert np.array_equal(numbers.of_spans(spans), np.concatenate(expected))
        assert np.array_equal(numbers.of_spans(spans[3:5]), np.concatenate(expected[3:5]))

    def test_few_states_are_remembered(self) -> None:
        numbers, count = Mersenne(7, native_fill), 1 << 20
        for first in (*range(0, count, 5000), *range(count, 0, -5000)):
            numbers(first, 700)
        assert len(numbers._states) == len(numbers._order) < 64
        assert numbers._order == sorted(numbers._states)
