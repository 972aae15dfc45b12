"""Native code makes the bits that torch makes, on any processor, and needs no torch to do so."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import TestGoldenBytes

from helpers import engine_cases as cases
from helpers import kernel_cases
from helpers.engine_cases import Models, assert_same, call_of, normal
from shardmerge.algebra import expression as ex
from shardmerge.algebra.samples import Runs, positions
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check.float_formats import multiplied_and_added
from shardmerge.check.recompute import Recomputer
from shardmerge.engine import machine_code, native, row_calls
from shardmerge.engine.reductions import NativeReduction
from shardmerge.engine.tasks import make_task, make_tasks, needs_torch
from shardmerge.methods.program import Reduction
from shardmerge.methods.registry import kernel_of, methods

SIXTEEN = (torch.float16, torch.bfloat16)

pytestmark = pytest.mark.skipif(
    not native.is_usable(), reason="this processor does not convert float16 by itself"
)


def evaluated(tensor: OutputTensor, inputs: list[torch.Tensor], numerics: str) -> torch.Tensor:
    """Return an output tensor, made by native code alone."""
    steps = make_task(tensor, (), numerics).steps
    out = torch.empty(inputs[0].shape, dtype=getattr(torch, DTYPES[tensor.dtype].name))
    code = native.native(steps.program)
    code.run(out.data_ptr(), [t.data_ptr() for t in inputs], out.numel(), steps.constants)
    return out


def recomputed(tensor: OutputTensor, inputs: list[torch.Tensor]) -> np.ndarray:
    """Return what a check holds an output tensor for, before it is rounded."""

    def read(leaf: ex.Source, runs: Runs) -> np.ndarray:
        flat = inputs[int(leaf.model[1:])].reshape(-1)
        bits = flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
        return bits.numpy()[positions(runs)]

    runs = ((0, math.prod(tensor.shape)),)
    return Recomputer(MERGEKIT, (), read).estimate(tensor.expression, runs, tensor.dtype).value


def same_numbers(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Show that two tensors have the same bits, but for those of a NaN."""
    assert_same(got.isnan(), expected.isnan())
    assert_same(got.nan_to_num(0, 1, -1), expected.nan_to_num(0, 1, -1))
    assert_same(got.isinf(), expected.isinf())


def source(code: str, shape: tuple[int, ...], model: str = "a") -> ex.Source:
    return ex.Source(model, cases.FILE, "w", code, shape)


class TestConversions:
    """Every number of 16 bits, and float32 near every tie between two of them."""

    @pytest.mark.parametrize("dtype", SIXTEEN)
    @pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
    def test_every_number_of_16_bits(self, dtype: torch.dtype, code: str) -> None:
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        given = source(cases.CODES[dtype], tuple(every.shape))
        expression = ex.Linear(((1.0, given), (0.0, given)))
        got = evaluated(OutputTensor("w", code, given.shape, expression), [every], FLOAT32)
        wide = every.float()
        same_numbers(got, (wide + wide * 0.0).to(got.dtype))

    @pytest.mark.parametrize("code", ["F16", "BF16"])
    def test_ties_go_to_even(self, code: str) -> None:
        dtype = getattr(torch, DTYPES[code].name)
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        wide = every[every.isfinite()].double()
        middle = ((wide[1:] + wide[:-1]) / 2).float()
        near = [middle, middle.nextafter(torch.tensor(9e9)), middle.nextafter(-torch.tensor(9e9))]
        values = torch.cat(near)
        tensor = OutputTensor("w", code, tuple(values.shape), source("F32", tuple(values.shape)))
        same_numbers(evaluated(tensor, [values], FLOAT32), values.to(dtype))

    @pytest.mark.parametrize("count", [1, 31, 32, 33, 16384 * 2 - 1, 16384 * 2 + 33])
    def test_any_number_of_elements(self, count: int) -> None:
        values = normal((count + 2,), 1, "F32")
        given = source("F32", (count,))
        tensor = OutputTensor("w", "F32", (count,), ex.Linear(((3.0, given),)))
        steps = make_task(tensor, (), FLOAT32).steps
        out = torch.full((count + 2,), 7.0)
        place = out.data_ptr() + 4
        native.native(steps.program).run(place, [values.data_ptr() + 4], count, (3.0,))
        assert_same(out[1:-1], values[1:-1] * 3.0)
        assert out[0] == out[-1] == 7.0  # nothing beside them is written


class TestMergekitNumerics:
    """Steps make what the kernel makes, which is what mergekit makes."""

    @pytest.mark.parametrize("name", [m.name for m in methods() if m.steps])
    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_equal_the_kernel(self, name: str, data: st.DataObject) -> None:
        dtypes = (*SIXTEEN, torch.float32)
        group = data.draw(kernel_cases.groups(name, dtypes=dtypes, models=4))
        code, shape = cases.CODES[group.tensors[0].dtype], tuple(group.tensors[0].shape)
        inputs = [source(code, shape, f"m{i}") for i in range(len(group.tensors))]
        tensor = OutputTensor("w", code, shape, call_of(name, group, inputs))
        if make_task(tensor, (), MERGEKIT).steps is None:
            assert len(group.tensors) > 4  # torch adds more than four terms in another order
            return
        expected = kernel_of(name, MERGEKIT)[0](group)
        same_numbers(evaluated(tensor, list(group.tensors), MERGEKIT), expected)
        checked = recomputed(tensor, list(group.tensors))
        same_numbers(torch.from_numpy(checked).to(expected.dtype).view(shape), expected)


class TestFusedMultiplyAdd:
    """A check's own, in float64, is rounded once."""

    SINGLES = st.floats(width=32, min_value=-(2.0**50), max_value=2.0**50)

    @staticmethod
    def nearest(value: Fraction) -> float:
        """Return the float32 nearest to an exact number, of two the even one."""
        (near,) = struct.unpack("<f", struct.pack("<f", float(value)))
        around = [np.nextafter(np.float32(near), np.float32(way)) for way in (-1e38, 1e38)]
        candidates = [float(np.float32(near)), *map(float, around)]
        return min(
            candidates,
            key=lambda c: (abs(Fraction(c) - value), np.float32(c).view(np.int32) & 1),
        )

    @settings(max_examples=500, deadline=None)
    @given(SINGLES, SINGLES, SINGLES)
    def test_any_numbers(self, x: float, y: float, z: float) -> None:
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        got = multiplied_and_added(np.array([x], np.float32), np.float32(y), np.array([z], "<f4"))
        assert float(got[0]) == self.nearest(exact)

    def test_just_beside_a_tie(self) -> None:
        """Where two roundings give another number than one."""
        z = np.array([1.0 + 2.0**-23, 1.0], np.float32)
        x = np.array([2.0**-24 * (1 + 2.0**-23)] * 2, np.float32)
        x[1] = -(2.0**-25) * (1 + 2.0**-23)
        y = np.float32(1 - 2.0**-23)  # their product is just below half a unit
        twice = (x.astype(np.float64) * np.float64(y) + z).astype(np.float32)
        got = multiplied_and_added(x, y, z)
        exact = [
            Fraction(float(a)) * Fraction(float(y)) + Fraction(float(c))
            for a, c in zip(x, z, strict=True)
        ]
        assert [float(one) for one in got] == [self.nearest(one) for one in exact]
        assert (twice != got).any()


class TestProcessors:
    @pytest.mark.parametrize("cpu", ["x86-64-v3", "x86-64-v4", "sandybridge", "znver4"])
    @pytest.mark.skipif(native.platform.machine() != "x86_64", reason="x86-64 only")
    def test_same_bytes_on_older_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str
    ) -> None:
        """Code for a processor with other vectors, as far as this one runs it."""
        features = native.binding.get_host_cpu_features()
        needs = {"x86-64-v3": "avx2", "x86-64-v4": "avx512bw", "znver4": "avx512bf16"}
        if not features.get(needs.get(cpu, "f16c")):
            pytest.skip(f"this processor is no {cpu}")
        monkeypatch.setattr(machine_code, "_processor", lambda: (cpu, "+f16c"))
        native.native.cache_clear()
        models = TestGoldenBytes.models(tmp_path)
        for name, spec in TestGoldenBytes.specs(models).items():
            assert models.build(spec).sha256 == TestGoldenBytes.GOLDEN[name]
        native.native.cache_clear()

    @pytest.mark.parametrize("features", ["+f16c", "+avx2,+f16c", "+avx2,+f16c,+fma"])
    @pytest.mark.skipif(native.platform.machine() != "x86_64", reason="x86-64 only")
    def test_fused_only_where_that_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, features: str
    ) -> None:
        """A processor's fused instruction changes no sum, and its lack changes no fused step."""
        host = native.binding.get_host_cpu_features()
        if not all(host.get(name.strip("+")) for name in features.split(",")):
            pytest.skip(f"this processor has not all of {features}")
        monkeypatch.setattr(machine_code, "_processor", lambda: ("x86-64", features))
        native.native.cache_clear()
        pair = [normal((999,), seed, "F32", 1.0) for seed in (1, 2)]
        a, b = (source("F32", (999,), f"m{i}") for i in range(2))
        total = OutputTensor("w", "F32", (999,), ex.Linear(((0.3, a), (0.7, b))))
        weighed = kernel_cases.ordinary("linear", (999,), weight=(0.3, 0.7), normalize=False)
        fused = replace(total, expression=call_of("linear", weighed, [a, b]))
        once = multiplied_and_added(
            pair[1].numpy(), np.float32(0.7), (pair[0] * np.float32(0.3)).numpy()
        )
        assert_same(evaluated(total, pair, FLOAT32), pair[0] * 0.3 + pair[1] * 0.7)
        assert_same(evaluated(fused, pair, MERGEKIT), torch.from_numpy(once))
        native.native.cache_clear()

    def test_torch_computes_what_it_does_not_fuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a processor without the instruction mergekit's bits are others; so are ours."""
        group = kernel_cases.ordinary("linear", (9,), weight=0.3)
        inputs = [source("F32", (9,), f"m{i}") for i in range(len(group.tensors))]
        tensor = OutputTensor("w", "F32", (9,), call_of("linear", group, inputs))
        assert make_task(tensor, (), MERGEKIT).kind == "native"
        monkeypatch.setattr("shardmerge.methods.linear.torch_fuses", lambda: False)
        assert make_task(tensor, (), MERGEKIT).kind == "blocks"

    @pytest.mark.parametrize(("level", "fuses"), [("default", False), ("avx2", True)])
    @pytest.mark.skipif(native.platform.machine() != "x86_64", reason="x86-64 only")
    def test_what_torch_fuses(self, level: str, fuses: bool) -> None:
        if not native.binding.get_host_cpu_features().get("fma"):
            pytest.skip("this processor has no fused multiply-add")
        script = (
            "import torch\n"
            "from shardmerge.methods.program import torch_fuses\n"
            "tiny = torch.full((99,), 1 + 2.0**-12)\n"
            "exact = torch.full((99,), -1.0).addcmul_(tiny, tiny)\n"
            "assert bool((exact == 2.0**-11 + 2.0**-24).all()) == torch_fuses()\n"
            f"assert torch_fuses() is {fuses}\n"
        )
        environment = {"PYTHONPATH": str(Path(native.__file__).parents[2])}
        environment["ATEN_CPU_CAPABILITY"] = level
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)

    def test_without_conversions_of_its_own_torch_computes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(native.binding, "get_host_cpu_features", dict)
        monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
        native.is_usable.cache_clear()
        assert not native.is_usable()
        models = TestGoldenBytes.models(tmp_path)
        record = models.build(TestGoldenBytes.specs(models)["flagship F16"])
        native.is_usable.cache_clear()
        assert record.sha256 == TestGoldenBytes.GOLDEN["flagship F16"]


class TestThreads:
    """Several compute threads of a job come to the same code for the first time at once."""

    REDUCTION = Reduction(("F32",), (("wide", (0,)),), (), "sums", (1,))

    def together(self, call: Callable[[], Any], number: int = 4) -> list[Any]:
        ready = threading.Barrier(number)

        def one(_: int) -> Any:
            ready.wait()
            return call()

        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(one, range(number)))

    def test_code_is_made_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine_code, "_CODE", machine_code._Code())
        text = row_calls.last_text("sums")
        assert len({id(found) for found in self.together(lambda: machine_code.compiled(text))}) == 1

    def test_address_stays_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever took it before another thread had made the code a second time."""
        monkeypatch.setattr(machine_code, "_CODE", machine_code._Code())
        code = NativeReduction(self.REDUCTION)
        assert len(set(self.together(lambda: code.address(1)))) == 1


class TestWhatNeedsTorch:
    SHAPE = (4, 6)

    def of(
        self, expression: ex.Expression, numerics: Numerics = FLOAT32, code: str = "F16"
    ) -> bool:
        spec = ShardSpec((OutputTensor("w", code, self.SHAPE, expression),), {}, numerics=numerics)
        return needs_torch(make_tasks(spec))

    def test_sums_do_not(self) -> None:
        a, b = (source("F16", self.SHAPE, m) for m in "ab")
        assert not self.of(a)
        assert not self.of(ex.Cast(a, "BF16"), code="BF16")
        assert not self.of(ex.Linear(((0.5, a), (0.5, ex.Delta(a, b, "F16")))))
        assert not self.of(ex.Zero(self.SHAPE))

    def test_copies_of_any_type_do_not_but_conversions_of_float64_do(self) -> None:
        whole, wide = source("I64", self.SHAPE), source("F64", self.SHAPE)
        assert not self.of(whole, code="I64")
        assert not self.of(ex.Linear(((1.0, whole),)), code="I64")
        assert not self.of(wide, code="F64")
        assert self.of(wide, code="F16")

    def test_float64_and_products_do(self) -> None:
        a, wide = source("F16", self.SHAPE), source("F64", self.SHAPE)
        low = ex.LowRank(source("F16", (4, 2)), source("F16", (2, 6)), 1.0, False, "F32")
        assert self.of(ex.Linear(((0.5, a), (0.5, wide))))
        assert self.of(ex.Cast(a, "F64"))
        assert self.of(ex.Linear(((1.0, a), (1.0, low))))

    def test_methods_that_are_no_sums_do(self) -> None:
        group = kernel_cases.ordinary("slerp", self.SHAPE)
        inputs = [source("F16", self.SHAPE, m) for m in "ab"]
        assert not self.of(call_of("slerp", group, inputs))
        assert self.of(call_of("slerp", group, inputs), code="F64")
        assert self.of(call_of("slerp", group, inputs), MERGEKIT)

    @pytest.mark.parametrize(("models", "expected"), [(4, False), (5, True)])
    def test_mergekit_sums_of_more_than_four_do(self, models: int, expected: bool) -> None:
        group = kernel_cases.ordinary("task_arithmetic", self.SHAPE, models=models)
        inputs = [source("F16", self.SHAPE, f"m{i}") for i in range(len(group.tensors))]
        assert self.of(call_of("task_arithmetic", group, inputs), MERGEKIT) == expected

    def test_one_shard_of_both_kinds(self, tmp_path: Path) -> None:
        shape = (37, 211)
        models = Models(tmp_path, {m: {"w": normal(shape, i)} for i, m in enumerate("ab")})
        a, b = models.source("a"), models.source("b")
        group = kernel_cases.ordinary("slerp", shape)
        rows = {
            f"t{i}": ("F16", one)
            for i, one in enumerate(
                [
                    ex.Linear(((0.3, a), (0.7, b))),
                    call_of("slerp", group, [a, b]),
                    a,
                    ex.Linear(((0.5, a), (1.0, ex.Cast(b, "F64")))),
                    ex.Delta(a, b, "F16"),
                ]
            )
        }
        made = []
        for threads in (1, 3):
            with cases.tuned(**cases.SMALL):
                made.append(models.build(models.spec(rows), threads=threads).sha256)
        assert made[0] == made[1]
        assert_same(models.load()["t4"], models.tensors["a"]["w"] - models.tensors["b"]["w"])

    def test_a_sum_is_built_without_it(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {m: {"w": normal((40, 50), i)} for i, m in enumerate("ab")})
        total = ex.Linear(((0.3, models.source("a")), (0.7, models.source("b"))))
        script = (
            "import json, pathlib, sys\n"
            "from shardmerge.engine import build_shard\n"
            "from shardmerge.algebra.spec import ShardSpec\n"
            "spec, folder = ShardSpec.from_json(json.load(sys.stdin)), pathlib.Path(sys.argv[1])\n"
            "paths = {key: folder / f'{key[0]}.safetensors' for key in spec.files}\n"
            "build_shard(spec, paths, folder / 'out.safetensors')\n"
            "assert 'torch' not in sys.modules\n"
        )
        scripts = Path(native.__file__).parents[2]
        spec = models.spec({"w": ("F16", total)})
        subprocess.run(
            [sys.executable, "-c", script, tmp_path],
            env={"PYTHONPATH": str(scripts)}, input=json.dumps(spec.to_json()), text=True,
            check=True,
        )  # fmt: skip
        assert_same(
            models.load()["w"],
            (
                models.tensors["a"]["w"].float() * 0.3 + models.tensors["b"]["w"].float() * 0.7
            ).half(),
        )
