"""Passes of mergekit numerics: the bits of the kernels that get whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
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
from shardmerge.engine import native
from shardmerge.engine.mersenne import native_fill
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
pytestmark = pytest.mark.skipif(not torch_order_is_known(), reason="torch adds otherwise here")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
            name, shape, 3, dtype, density=0.6, weight=0.3, rescale=True, select_topk=1.0
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


class TestTorchOrder:
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
    @pytest.mark.parametrize(
        "count", [1, 7, 8, 33, 63, 64, 512, 1023, 20000, BLOCK, BLOCK + 1, 2**21 + 77, 2**22 - 1]
    )
    def test_sums_and_norms(self, code: str, count: int) -> None:
        dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[code]
        random = torch.Generator().manual_seed(count)
        values = (torch.randn(count, generator=random) + 0.01).to(dtype)
        single = values.float().numpy()

        def feed(sums: list, first: int, size: int) -> None:
            sums[0].add(single[first : first + size])

        (total,) = torch_sums(feed, count, [code], TorchSums(lambda x: []))
        assert total == float(values.sum())
        (norm,) = torch_sums(feed, count, [code], TorchSums(lambda x: [], "norm"))
        assert norm == float(torch.norm(values))


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
