"""Elements of whole tensors that native code makes have the bits of torch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import engine_cases as cases
from helpers import kernel_cases
from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.base.numerics import MERGEKIT
from shardmerge.engine import evaluate, made_natively, native
from shardmerge.engine.made_natively import MadeBlocks, make_natively
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.execute import TorchElements, make_whole
from shardmerge.methods.passes import Axis, Elements, ElementValue, KeyBand, Map
from shardmerge.methods.registry import kernel_of

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")


def mixed(x: Elements) -> ElementValue:
    """Return what has every operation, and a number wider than the inputs' type."""
    return x[0] * 0.3 + x.quotient(x.rounded(x[1]), 1.7) * (1 / 3) + x.full(0.1)


@pytest.mark.parametrize("shape", [(), (1,), (33,), (3, 5, 7), (BLOCK + 1,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_elements_have_the_bits_of_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    pair = [first.to(dtype), second]
    for kind in (dtype, torch.float32):
        made = [torch.empty(shape, dtype=kind) for _ in range(2)]
        make_natively(mixed, pair, made[0])
        make_whole(mixed, pair, made[1])
        cases.assert_same(*made)
    make_natively(mixed, pair, pair[1])
    cases.assert_same(pair[1], made[1])


def test_torch_makes_what_native_code_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [torch.randn(9, dtype=torch.float64) for _ in range(2)]
    made = [torch.empty(9, dtype=torch.float64) for _ in range(2)]
    make_natively(mixed, pair, made[0])
    make_whole(mixed, pair, made[1])
    cases.assert_same(*made)
    monkeypatch.setattr(native, "is_usable", lambda: False)
    monkeypatch.setattr(made_natively, "program_of", None)
    make_natively(mixed, [one.half() for one in pair], made[0])


@pytest.mark.parametrize("dtype", kernel_cases.DTYPES)
@pytest.mark.parametrize("kind", kernel_cases.KINDS)
def test_the_mean_on_the_sphere(dtype: torch.dtype, kind: str) -> None:
    group = kernel_cases.ordinary("karcher", (33, 5), models=3, tol=1e-12)
    group = replace(group, tensors=kernel_cases.tensors(3, (33, 5), kind, 1, dtype))
    kernel, _ = kernel_of("karcher", MERGEKIT)
    cases.assert_same(kernel(replace(group, make_whole=make_natively)), kernel(group))


def test_a_job_has_no_torch_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = kernel_cases.ordinary("karcher", (40, 64), models=3, dtype=torch.float16)
    tensors = {f"m{i}": {"w": one} for i, one in enumerate(group.tensors)}
    models = cases.Models(tmp_path, tensors)
    inputs = [models.source(model) for model in tensors]
    spec = models.spec({"w": ("F16", cases.call_of("karcher", group, inputs))}, numerics=MERGEKIT)
    monkeypatch.setattr(made_natively, "make_whole", None)
    models.build(spec)
    cases.assert_same(models.load()["w"], kernel_of("karcher", MERGEKIT)[0](group))


class TestBlocks:
    RUNS = ((3, 5), (64, 70), (8, 1), (200, 0), (140, 60))

    def made(self, function: Map, dtype: torch.dtype, narrow: bool) -> list[torch.Tensor]:
        """Return what native code makes of runs, and what torch does."""
        generator = torch.Generator().manual_seed(0)
        count = sum(count for _, count in self.RUNS)
        tensors = [torch.randn(count, generator=generator).to(dtype) for _ in range(2)]
        blocks = MadeBlocks(function, (20, 15), narrow=narrow)
        found = blocks(tensors, 3, self.RUNS)
        return [found, function(TorchElements(tensors, (20, 15), 3, self.RUNS))]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_elements_of_runs(self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = self.made(mixed, dtype, narrow=True)[1]
        monkeypatch.setattr(made_natively, "TorchElements", None)
        cases.assert_same(self.made(mixed, dtype, narrow=True)[0], expected)

    def test_no_elements(self) -> None:
        nothing = [torch.empty(0), torch.empty(0)]
        assert not len(MadeBlocks(mixed, (20, 15), narrow=False)(nothing, 3, [(3, 0)]))

    def test_bands_that_end_within_a_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        low, high = (int(torch.tensor(one).view(torch.int32)) for one in (0.25, 1.0))
        band = KeyBand(low, high, (0, 66), (130, 150))

        def kept(x: Elements) -> ElementValue:
            size = x[0].clamp(0.25, 1.0)
            return x.where(x.inside(size, band), x[1], size)

        expected = self.made(kept, torch.float32, narrow=False)[1]
        monkeypatch.setattr(made_natively, "TorchElements", None)
        cases.assert_same(self.made(kept, torch.float32, narrow=False)[0], expected)

    @pytest.mark.parametrize("axis", ["last", "first"])
    def test_numbers_beside_are_torchs(self, axis: Axis) -> None:
        numbers = np.arange(1.0, 21.0)[: 20 if axis == "last" else 15]
        made = self.made(lambda x: x[0] * x.along(numbers, axis), torch.float32, False)
        cases.assert_same(*made)

    def test_rows_of_a_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        group = kernel_cases.ordinary("ties", (40, 64), models=2, density=0.3, dtype=torch.float16)
        tensors = {f"m{i}": {"w": one} for i, one in enumerate(group.tensors)}
        models = cases.Models(tmp_path, tensors)
        call = cases.call_of("ties", group, [models.source(model) for model in tensors])
        order = [7, 3, 3, 39, 0, 12]
        taken = ex.Rows(call, rows.format_rows(order))
        models.build(models.spec({"whole": ("F16", call)}), "whole.safetensors")
        for module in (made_natively, evaluate):
            monkeypatch.setattr(module, "TorchElements", None)
        models.build(models.spec({"w": ("F16", taken)}))
        cases.assert_same(models.load()["w"], models.load("whole.safetensors")["whole"][order])
