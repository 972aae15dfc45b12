"""On a CUDA device the engine makes the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_engine import TestGoldenBytes

from helpers import engine_cases as cases
from helpers import kernel_cases, method_bytes
from helpers.engine_cases import Models, call_of, normal
from helpers.library_cases import decomposed, measured
from helpers.told_shard import Told
from shardmerge.algebra import expression as ex
from shardmerge.algebra import samples
from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.check import kernels
from shardmerge.check.shard import check_shard
from shardmerge.engine import native
from shardmerge.methods.registry import in_mergekit, method, methods

#: Methods that a library decides the bits of have none to compare.
IN_MERGEKIT = [m.name for m in methods() if in_mergekit(m.name) and not m.bounds]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(autouse=True)
def without_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the card compute what native code does where there is any."""
    monkeypatch.setattr(native, "is_usable", lambda: False)


class TestCuda:
    @pytest.mark.parametrize("name", [n for n in TestGoldenBytes.GOLDEN if "verbatim" not in n])
    def test_golden_bytes(self, tmp_path: Path, name: str) -> None:
        models = TestGoldenBytes.models(tmp_path)
        spec = TestGoldenBytes.specs(models)[name]
        assert models.build(spec, device="cuda").sha256 == TestGoldenBytes.GOLDEN[name]

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
    def test_every_methods_golden_bytes(self, tmp_path: Path, device: str) -> None:
        if device == "cuda:1" and torch.cuda.device_count() < 2:
            pytest.skip("there is one card")
        found = method_bytes.by_the_engine(tmp_path, {}, 2, device)
        golden = json.loads(Path(method_bytes.__file__).with_suffix(".json").read_text())
        assert found == {name: golden["hashes"][name] for name in found}

    @pytest.mark.parametrize("name", IN_MERGEKIT)
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
    def test_mergekits_numerics_equal_the_cpu(self, tmp_path: Path, name: str, code: str) -> None:
        found, dtypes = {}, {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
        for variant, values in method(name).examples.items():
            for shape in ((211, 97), (37, 4001)):
                group = kernel_cases.ordinary(name, shape, models=3, dtype=dtypes[code], **values)
                folder = tmp_path / f"{variant}-{shape[0]}"
                models = Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
                inputs = [ex.Cast(models.source(m), code) for m in models.tensors]
                call = call_of(name, group, inputs)
                spec = models.spec({"w": ("F32", call)}, numerics=MERGEKIT, allow_nonfinite=True)
                on_cpu = models.build(spec).sha256
                found[variant, shape] = models.build(spec, device="cuda").sha256 == on_cpu
        assert all(found.values()), [case for case, same in found.items() if not same]

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
    def test_means_of_rows(self, tmp_path: Path, numerics: str, code: str) -> None:
        models = Models(tmp_path, {"a": {"w": normal((333, 300), 1, code, 1.0)}})
        spec = models.spec({"w": (code, ex.Mean(models.source("a")))}, numerics=numerics)
        on_cpu = models.build(spec)
        assert models.build(spec, device="cuda").sha256 == on_cpu.sha256

    @pytest.mark.parametrize("code", cases.FLOATS)
    @pytest.mark.parametrize("cut", [cases.SMALL | {"device_block": 100}, {}])
    def test_equals_the_cpu(self, tmp_path: Path, code: str, cut: dict[str, object]) -> None:
        tables = {c: {"w": normal((211, 97), i, c, 1.0)} for i, c in enumerate(cases.FLOATS)}
        tables["F16"]["w"][3, 4] = float("nan")
        models = Models(tmp_path, tables)
        s = [models.source(c) for c in cases.FLOATS]
        delta = ex.Delta(s[0], s[1], "F16")
        total = ex.Linear(((0.3, s[2]), (-0.7, delta), (1.0, ex.Cast(s[3], "BF16"))))
        spec = models.spec({"w": (code, total), "copy": ("F16", s[0])}, allow_nonfinite=True)
        on_cpu = models.build(spec)
        with cases.tuned(**cut):
            on_cuda = models.build(spec, device="cuda", threads=3)
        assert on_cuda.sha256 == on_cpu.sha256
        assert on_cuda.deltas.keys() == on_cpu.deltas.keys()

    def test_what_is_recorded_of_large_tensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (samples, kernels):
            monkeypatch.setattr(module, "WHOLE", 100)
        for name in ("iso_c", "iso_cts", "subspace_boosting", "tsv_m", "regmean_solution"):
            make = measured if name == "regmean_solution" else decomposed
            models, spec = make(name, tmp_path / name)
            told = models.build(spec, device="cuda").probes
            found = check_shard(
                spec, tmp_path / name / "out.safetensors", models.paths, (), Told(probes=told or {})
            )
            assert found["verified_by_probes"] == 1

    def test_a_whole_call(self, tmp_path: Path) -> None:
        group = kernel_cases.ordinary("slerp", (211, 97))
        models = Models(tmp_path, {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)})
        inputs = [models.source(m) for m in models.tensors]
        spec = models.spec({"w": ("F32", call_of("slerp", group, inputs))})
        models.build(spec)
        expected = models.load()["w"]
        with cases.tuned(**cases.SMALL):
            models.build(spec, device="cuda", threads=3)
        torch.testing.assert_close(models.load()["w"], expected, rtol=1e-5, atol=1e-6)
