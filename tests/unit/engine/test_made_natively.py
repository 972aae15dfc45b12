"""Elements of whole tensors that native code makes have the bits of torch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import engine_cases as cases
from helpers import kernel_cases
from shardmerge.base.numerics import MERGEKIT
from shardmerge.engine import made_natively, native
from shardmerge.engine.made_natively import make_natively
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.execute import make_whole
from shardmerge.methods.passes import Elements, ElementValue
from shardmerge.methods.registry import kernel_of

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")


def mixed(x: Elements) -> ElementValue:
    """Return what has every operation, and a number wider than the inputs' type."""
    return x[0] * 0.3 + x.rounded(x[1]) / 1.7 * (1 / 3) + x.full(0.1)


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
