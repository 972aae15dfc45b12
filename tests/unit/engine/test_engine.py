"""The engine computes what expressions say, to the bit, however it is cut up."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import engine_cases as cases
from helpers import kernel_cases
from helpers.engine_cases import Models, assert_same, call_of, normal
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ENGINE_VERSION, ShardSpec, delta_name
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT
from shardmerge.engine import native, stream
from shardmerge.engine.device import Host, HostBuffer
from shardmerge.methods.registry import in_mergekit, kernel_of, methods

KERNELS = [(m.name, FLOAT32) for m in methods() if m.kernel]
KERNELS += [(m.name, MERGEKIT) for m in methods() if in_mergekit(m.name)]
CUTS = [{"block": 64, "windows": (4096,)}, {"block": 1000, "windows": (12288,)}, {}]


@pytest.fixture(autouse=True, params=["native code", "torch"])
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes sums: all tests hold for both."""
    if request.param == "torch":
        monkeypatch.setattr(native, "is_usable", lambda: False)
    return request.param


@pytest.fixture
def trio(tmp_path: Path) -> Models:
    """Three models of one tensor that spans several windows of 4096 bytes."""
    shape = (37, 211)
    base = normal(shape, 1)
    tuned = (base.float() + normal(shape, 2, "F32", 0.003)).half()
    return Models(
        tmp_path, {"base": {"w": base}, "tuned": {"w": tuned}, "q": {"w": normal(shape, 3)}}
    )


def flagship(trio: Models, weight: float = 0.4) -> ex.Expression:
    delta = ex.Delta(trio.source("tuned"), trio.source("base"), "F16")
    return ex.Linear(((1.0, trio.source("q")), (weight, delta)))


class TestGoldenBytes:
    """A change here changes what users have built: it needs a new ENGINE_VERSION in spec.py."""

    GOLDEN = {  # noqa: RUF012
        "flagship F16": "eb40bae7431c4e1bb60721e05b1f36a4903a1aa36b0885b984b31917b22d68d3",
        "sum BF16": "d0d95aba2754346e248c67efa967421b1a8cc87222428092a06e32639e82afe3",
        "F64 to F16": "b3e8079e932138ff52465e85a16fc8008b1fa35e44448916c8a93f721a2b9140",
        "adapter F16": "037ac83ad3e8e3020450985dae42888104cb2f7ada0733dd8e60d03890464ede",
        "delta F32": "ecfeb386ee9f50cc6de965f850987938f6c154bb40278ca4b8c7e503d7065f30",
        "verbatim I64": "083ad330e13d96703e027abb22409c3141eab7a609acc6a9b2a4c8eb65a49a87",
    }

    @staticmethod
    def specs(models: Models) -> dict[str, ShardSpec]:
        s = models.source
        delta = ex.Delta(s("a", "h"), s("b", "h"), "F16")
        adapter = ex.LowRank(s("l", "b"), s("l", "a"), 0.75, False, "F32")
        turned = ex.LowRank(s("l", "c"), s("l", "d"), -1.5, True, "F32")
        sums = ex.Linear(((0.3, s("a", "h")), (0.7, s("b", "bf")), (-1.1, s("a", "f"))))
        return {
            "flagship F16": models.spec(
                {"w": ("F16", ex.Linear(((1.0, s("b", "h")), (0.35, delta))))}
            ),
            "sum BF16": models.spec({"w": ("BF16", sums)}),
            "F64 to F16": models.spec(
                {"w": ("F16", ex.Linear(((1 / 3, s("a", "d")), (1.0, s("b", "h")))))}
            ),
            "adapter F16": models.spec(
                {
                    name: ("F16", ex.Linear(((1.0, s("b", "h")), (0.9, update))))
                    for name, update in (("w", adapter), ("v", turned))
                }
            ),
            "delta F32": models.spec({"w": ("F32", ex.Delta(s("a", "f"), s("b", "bf"), "F32"))}),
            "verbatim I64": models.spec({"i": ("I64", s("a", "i")), "w": ("F16", s("b", "h"))}),
        }

    @staticmethod
    def models(folder: Path) -> Models:
        """Numbers by integer arithmetic, so that they are the same with every torch."""
        steps = torch.arange(3000, dtype=torch.int64)

        def made(factor: int, dtype: torch.dtype, shape: Any = (30, 100)) -> torch.Tensor:
            values = (steps * factor % 8191 - 4095).double() / 30011
            return values[: math.prod(shape)].to(dtype).reshape(shape)

        a = {"h": made(911, torch.float16), "f": made(613, torch.float32)}
        a |= {"d": made(577, torch.float64), "i": (steps * 31).reshape(30, 100)}
        b = {"h": made(353, torch.float16), "bf": made(127, torch.bfloat16)}
        adapter = {"b": made(211, torch.float32, (30, 7)), "a": made(97, torch.float32, (7, 100))}
        adapter |= {"c": made(83, torch.bfloat16, (100, 5)), "d": made(59, torch.float16, (5, 30))}
        return Models(folder, {"a": a, "b": b, "l": adapter})

    @pytest.mark.parametrize("name", list(GOLDEN))
    def test_bytes(self, tmp_path: Path, name: str) -> None:
        models = self.models(tmp_path)
        record = models.build(self.specs(models)[name])
        written = (tmp_path / "out.safetensors").read_bytes()
        assert record.sha256 == hashlib.sha256(written).hexdigest()
        assert (ENGINE_VERSION, record.sha256) == (1, self.GOLDEN[name])

    def test_bytes_without_vector_instructions(self, tmp_path: Path) -> None:
        """torch's plainest code, which has no fused multiply-add, makes the same bytes."""
        script = (
            "import sys, pathlib, torch\n"
            "from shardmerge.engine import native\n"
            "native.is_usable = lambda: False\n"
            "from test_engine import TestGoldenBytes as T\n"
            "assert torch.backends.cpu.get_cpu_capability() == 'DEFAULT'\n"
            "models = T.models(pathlib.Path(sys.argv[1]))\n"
            "for name, spec in T.specs(models).items():\n"
            "    assert models.build(spec).sha256 == T.GOLDEN[name], name\n"
        )
        environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", script, str(tmp_path)]
        subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parent)


class TestExpressions:
    """Random expressions over random dtypes equal a plain computation with whole tensors."""

    @staticmethod
    def expressions(models: Models) -> st.SearchStrategy[ex.Expression]:
        coefficients = st.sampled_from((1.0, -1.0, 0.5, 1 / 3, -0.7, 1e-3, 2.5))
        floats = st.sampled_from(cases.FLOATS)
        sources = st.sampled_from([models.source(m) for m in models.tensors])

        def nested(inner: st.SearchStrategy) -> st.SearchStrategy:
            terms = st.lists(st.tuples(coefficients, inner), min_size=1, max_size=4)
            return st.one_of(
                st.builds(ex.Delta, inner, inner, floats),
                st.builds(ex.Cast, inner, floats),
                terms.map(lambda rows: ex.Linear(tuple(rows))),
            )

        return st.recursive(sources, nested, max_leaves=6)

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],  # no example changes it
    )
    @given(st.data())
    def test_equal_a_plain_reference(self, data: st.DataObject) -> None:
        shape = data.draw(st.sampled_from([(), (0, 3), (1,), (7,), (3, 5, 2), (50, 61)]))
        with tempfile.TemporaryDirectory() as folder, cases.tuned(**cases.SMALL):
            models = Models(
                Path(folder),
                {c: {"w": normal(shape, i, c, 1.0)} for i, c in enumerate(cases.FLOATS)},
                odd=data.draw(st.booleans()),
            )
            expression = data.draw(self.expressions(models))
            code = data.draw(st.sampled_from(cases.FLOATS))
            models.build(models.spec({"w": (code, expression)}, allow_nonfinite=True))
            expected = cases.rounded(cases.reference(expression, models.tensors), code)
            assert_same(models.load()["w"], expected)

    @pytest.mark.parametrize("code", ["F16", "BF16"])
    def test_float64_is_rounded_once(self, tmp_path: Path, code: str) -> None:
        ulp = 2.0**-10 if code == "F16" else 2.0**-7
        halves = torch.arange(1, 400, dtype=torch.float64) * ulp + 1 + ulp / 2
        values = torch.cat([halves + 1e-13, halves - 1e-13, halves, -halves - 1e-13])
        tiny = values * 2.0**-24 if code == "F16" else values * 2.0**-133
        models = Models(tmp_path, {"a": {"w": torch.cat([values, tiny])}})
        models.build(models.spec({"w": (code, models.source("a"))}))
        expected = cases.rounded(models.tensors["a"]["w"], code)
        assert (expected != models.tensors["a"]["w"].to(expected.dtype)).any()
        assert_same(models.load()["w"], expected)

    def test_products_and_sums_are_rounded_apart(self, tmp_path: Path) -> None:
        x = torch.tensor([1.0 + 2**-12] * 100)
        models = Models(tmp_path, {"a": {"w": x}, "b": {"w": -x * x}})
        spec = models.spec(
            {"w": ("F32", ex.Linear(((1.0, models.source("b")), (1 + 2**-12, models.source("a")))))}
        )
        models.build(spec)
        assert not models.load()["w"].any()  # a fused multiply-add leaves 2**-24

    def test_negative_zero_and_exact_copies_stay(self, tmp_path: Path) -> None:
        zeros = torch.tensor([-0.0, 0.0, -0.0] * 50)
        models = Models(tmp_path, {"a": {"w": zeros}})
        models.build(models.spec({"w": ("F16", ex.Linear(((1.0, models.source("a")),)))}))
        assert_same(models.load()["w"], zeros.half())

    def test_what_is_copied_keeps_every_bit(self, tmp_path: Path) -> None:
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
        table = {
            "half": every.view(torch.float16),
            "brain": every.view(torch.bfloat16).reshape(256, 256),
            "long": every.long() * 0x0123456789AB,
            "bool": every % 2 == 0,
            "fp8": every.view(torch.uint8).view(torch.float8_e4m3fn),
            "byte": every.view(torch.uint8)[:3],
            "scalar": torch.tensor(7),
            "empty": torch.empty(0, 4),
        }
        models = Models(tmp_path, {"a": table})
        same = ex.Linear(((1.0, ex.Cast(models.source("a", "half"), "F16")),))
        rows = {n: (cases.CODES[t.dtype], models.source("a", n)) for n, t in table.items()}
        record = models.build(models.spec({"same": ("F16", same), **rows}))
        assert not record.nonfinite
        for name, got in models.load().items():
            assert_same(got, table["half" if name == "same" else name])

    @pytest.mark.parametrize("code", ["I64", "F8_E4M3", "BOOL"])
    def test_what_is_not_a_merge_type_is_only_copied(self, tmp_path: Path, code: str) -> None:
        value = torch.ones(8).to(
            getattr(torch, {"I64": "int64", "BOOL": "bool"}.get(code, "float8_e4m3fn"))
        )
        models = Models(tmp_path, {"a": {"w": value}})
        with pytest.raises(UserError, match="only be copied"):
            models.build(models.spec({"w": ("F32", models.source("a"))}))
        assert not (tmp_path / "out.safetensors").exists()


class TestCalls:
    """Merge methods that are not sums: blocks or whole tensors, as each needs."""

    @pytest.mark.parametrize(("name", "numerics"), KERNELS)
    def test_equal_the_kernel_on_whole_tensors(
        self, tmp_path: Path, name: str, numerics: str
    ) -> None:
        dtype = torch.bfloat16
        group = kernel_cases.ordinary(name, (40, 130), models=2, dtype=dtype)
        table = {f"m{i}": {"w": t} for i, t in enumerate(group.tensors)}
        models = Models(tmp_path, table)
        inputs: list[ex.Expression] = [models.source(m) for m in table]
        if numerics == MERGEKIT:
            inputs = [ex.Cast(e, "BF16") for e in inputs]
            given = list(group.tensors)
        else:
            given = [t.float() for t in group.tensors]
        expected = kernel_of(name, numerics)[0](kernel_cases.replace(group, tensors=given))
        spec = models.spec({"w": ("F32", call_of(name, group, inputs))}, numerics=numerics)
        for threads, cut in ((1, CUTS[0]), (3, CUTS[1])):
            with cases.tuned(**cut):
                models.build(spec, threads=threads)
            assert_same(models.load()["w"], expected.float())

    def test_a_call_within_a_call_within_a_sum(self, tmp_path: Path, trio: Models) -> None:
        group = kernel_cases.ordinary("slerp", (37, 211))
        inner = call_of("slerp", group, [trio.source("base"), flagship(trio)])
        outer = call_of("slerp", group, [inner, trio.source("q")])
        spec = trio.spec({"w": ("F16", ex.Linear(((1.0, trio.source("q")), (0.5, outer))))})
        kernel = kernel_of("slerp", FLOAT32)[0]

        def slerp(*tensors: torch.Tensor) -> torch.Tensor:
            return kernel(kernel_cases.replace(group, tensors=[t.float() for t in tensors]))

        t = {model: table["w"] for model, table in trio.tensors.items()}
        middle = slerp(t["base"], cases.reference(flagship(trio), trio.tensors))
        expected = (t["q"].float() + slerp(middle, t["q"]) * 0.5).half()
        with cases.tuned(**cases.SMALL):
            record = trio.build(spec, threads=3)
        assert_same(trio.load()["w"], expected)
        ((models, own, base),) = record.deltas["w"]
        assert models == ["tuned", "base"]
        assert own > 0
        assert base == pytest.approx(float(t["base"].double().square().sum()), rel=1e-6)

    def test_many_whole_tensors_one_after_the_other(self, tmp_path: Path) -> None:
        group = kernel_cases.ordinary("slerp", (30, 50))
        tables = {
            m: {f"t{i}": normal((30, 50), 100 * k + i) for i in range(12)}
            for k, m in enumerate("ab")
        }
        models = Models(tmp_path, tables)
        rows = {
            f"t{i}": ("F16", call_of("slerp", group, [models.source(m, f"t{i}") for m in "ab"]))
            for i in range(12)
        }
        with cases.tuned(**cases.SMALL):
            models.build(models.spec(rows), threads=4)
        kernel = kernel_of("slerp", FLOAT32)[0]
        for name, got in models.load().items():
            tensors = [tables[m][name].float() for m in "ab"]
            assert_same(got, kernel(kernel_cases.replace(group, tensors=tensors)).half())


class TestCuts:
    """Threads, windows and blocks change the time, never a bit."""

    def test_bytes_and_sums_of_squares(self, trio: Models) -> None:
        spec = trio.spec({
            "byte": ("F16", trio.source("q")),
            "w": ("F16", flagship(trio)),
            "wide": ("F32", ex.Linear(((0.3, trio.source("q")), (0.7, trio.source("base"))))),
        })  # fmt: skip
        for cut in CUTS:
            records = []
            for threads in (1, 2, 6, 40):
                with cases.tuned(**cut):
                    records.append(trio.build(spec, threads=threads))
            assert len({r.sha256 for r in records}) == 1
            assert len({str(r.deltas) for r in records}) == 1
            first = trio.build(spec).sha256
            assert records[0].sha256 == first

    def test_elements_across_window_edges(self, tmp_path: Path) -> None:
        """A tensor of bytes first puts every other tensor on odd places of the output."""
        table = {"byte": torch.arange(3, dtype=torch.uint8), "d": normal((3000,), 1, "F64")}
        table |= {"h": normal((5001,), 2, "F16"), "f": normal((2003,), 3, "F32")}
        models = Models(tmp_path, {"a": table, "b": {n: t.clone() for n, t in table.items()}})
        rows = {"byte": ("U8", models.source("a", "byte"))}
        for name in "dhf":
            terms = (0.5, models.source("a", name)), (0.25, models.source("b", name))
            rows[name] = cases.CODES[table[name].dtype], ex.Linear(terms)
        for cut in CUTS:
            with cases.tuned(**cut):
                models.build(models.spec(rows), threads=2)
            got = models.load()
            for name in "dhf":
                expected = cases.reference(rows[name][1], models.tensors).to(table[name].dtype)
                assert_same(got[name], expected)

    def test_sums_of_squares_are_right(self, trio: Models) -> None:
        record = trio.build(trio.spec({"w": ("F16", flagship(trio))}))
        delta = cases.reference(
            ex.Delta(trio.source("tuned"), trio.source("base"), "F16"), trio.tensors
        )
        ((models, own, base),) = record.to_json()["deltas"]["w"]
        assert models == ["tuned", "base"]
        assert own == pytest.approx(float(delta.double().square().sum()), rel=1e-6)
        assert base == pytest.approx(
            float(trio.tensors["base"]["w"].double().square().sum()), rel=1e-6
        )

    def test_computing_beside_the_slots(
        self, trio: Models, monkeypatch: pytest.MonkeyPatch, made_by: str
    ) -> None:
        """As on an accelerator: what is computed lies elsewhere and is brought back."""
        if made_by != "torch":
            pytest.skip("native code computes in the slots")
        spec = trio.spec({
            "q": ("F16", trio.source("q")),
            "byte": ("F32", trio.source("base")),
            "w": ("F16", flagship(trio)),
            "last": ("F16", trio.source("tuned")),
        })  # fmt: skip
        first = trio.build(spec)

        class Beside(Host):
            def inputs(self, buffer: HostBuffer, length: int) -> torch.Tensor:
                return buffer.tensor[:length].clone()

            def outputs(self, buffer: HostBuffer) -> torch.Tensor:
                return torch.full_like(buffer.tensor, 0xAA)

            def deliver(
                self, results: torch.Tensor, buffer: HostBuffer, begin: int, end: int
            ) -> None:
                buffer.tensor[begin:end] = results[begin:end]

        monkeypatch.setattr(stream, "Host", Beside)
        for cut in CUTS:
            with cases.tuned(**cut):
                assert trio.build(spec, threads=2).sha256 == first.sha256

    @pytest.mark.parametrize("threads", [1, 2])
    def test_progress_counts_every_byte_once(self, trio: Models, threads: int) -> None:
        seen: list[tuple[int, int]] = []
        with cases.tuned(**cases.SMALL):
            record = trio.build(
                trio.spec({"w": ("F16", flagship(trio))}),
                threads=threads,
                progress=lambda done, total: seen.append((done, total)),
            )
        assert seen == sorted(seen)
        assert seen[-1] == (record.size, record.size)
        assert record.size == (trio.folder / "out.safetensors").stat().st_size
        assert record.bytes_written == record.size
        data = sum(t["w"].nbytes for t in trio.tensors.values())
        assert record.bytes_read == data


class TestStoredDeltas:
    """A task vector that lies on disk and one computed in passing make the same bytes."""

    @pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
    def test_same_bytes(self, trio: Models, dtype: str) -> None:
        delta = ex.Delta(trio.source("tuned"), trio.source("base"), dtype)
        spec = trio.spec({
            "w": ("F16", ex.Linear(((1.0, trio.source("q")), (0.4, delta)))),
            "only": ("F32", ex.Linear(((0.5, delta),))),
        })  # fmt: skip
        fused = trio.build(spec)
        name = delta_name(delta, spec.files)
        stored = trio.build(trio.spec({name: (dtype, delta)}), "deltas.safetensors")
        built = trio.folder / "deltas.safetensors"
        trio.paths = {key: path for key, path in trio.paths.items() if key[0] == "q"}
        again = trio.build(spec, deltas=[built])
        assert again.sha256 == fused.sha256
        assert stored.deltas[name][0][1:] == pytest.approx(fused.deltas["w"][0][1:])
        models, own, base = again.deltas["w"][0]
        assert (models, base) == (["tuned", "base"], None)
        assert own == pytest.approx(fused.deltas["w"][0][1], rel=1e-6)

    def test_a_shard_without_the_delta_is_no_use(self, trio: Models) -> None:
        delta = ex.Delta(trio.source("tuned"), trio.source("q"), "F16")
        name = delta_name(delta, trio.spec({}).files)
        trio.build(trio.spec({name: ("F16", delta)}), "deltas.safetensors")
        spec = trio.spec({"w": ("F16", flagship(trio))})
        first = trio.build(spec).sha256
        assert trio.build(spec, deltas=[trio.folder / "deltas.safetensors"]).sha256 == first


class TestNonFinite:
    """An infinite or NaN result is an error, unless a source has one there, or it is allowed."""

    @pytest.fixture
    def large(self, tmp_path: Path) -> Models:
        a, b = normal((20, 400), 1), normal((20, 400), 2)
        a[3, 5] = b[3, 5] = 60000.0
        a[19, 399] = b[19, 399] = -60000.0
        a[7, 7] = float("inf")
        a[8, 8] = float("nan")
        return Models(tmp_path, {"a": {"w": a}, "b": {"w": b}})

    def test_fails_naming_tensor_and_count(self, large: Models) -> None:
        total = ex.Linear(((1.0, large.source("a")), (1.0, large.source("b"))))
        spec = large.spec({"fine": ("F16", large.source("b")), "sum": ("F16", total)})
        with pytest.raises(UserError) as caught, cases.tuned(**cases.SMALL):
            large.build(spec, threads=2)
        assert "2 merged values" in str(caught.value)
        assert "'sum'" in str(caught.value)
        assert "allow_nonfinite: true" in str(caught.value)
        assert sorted(p.name for p in large.folder.iterdir()) == ["a.safetensors", "b.safetensors"]

    def test_is_counted_where_allowed(self, large: Models) -> None:
        total = ex.Linear(((1.0, large.source("a")), (1.0, large.source("b"))))
        spec = large.spec({"sum": ("F16", total), "wide": ("F32", total)}, allow_nonfinite=True)
        record = large.build(spec)
        assert record.nonfinite == {"sum": 2}
        got = large.load()["sum"]
        assert got[3, 5] == float("inf")
        assert got[19, 399] == -float("inf")
        assert int(got.view(torch.int16)[8, 8]) == 0x7E00  # one NaN for all processors

    def test_sums_that_are_large_but_finite_pass(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {"a": {"w": torch.full((4000,), 60000.0)}})
        record = models.build(models.spec({"w": ("F16", models.source("a"))}))
        assert record.nonfinite == {}

    def test_a_conversion_that_overflows_counts(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {"a": {"w": torch.tensor([1e30, float("inf"), 1.0])}})
        with pytest.raises(UserError, match="1 merged values"):
            models.build(models.spec({"w": ("F16", models.source("a"))}))

    @pytest.mark.parametrize(("poisoned", "expected"), [(True, {}), (False, {"w": 1})])
    def test_of_a_whole_call_counts_if_no_source_has_any(
        self, tmp_path: Path, poisoned: bool, expected: dict[str, int]
    ) -> None:
        a, b = normal((60, 70), 1, "F32"), normal((60, 70), 2, "F32")
        a[0, 0] = b[0, 0] = 1e30
        if poisoned:
            b[50, 60] = float("inf")
        models = Models(tmp_path, {"a": {"w": a}, "b": {"w": b}})
        group = kernel_cases.ordinary("slerp", (60, 70))
        call = call_of("slerp", group, [models.source("a"), models.source("b")])
        with cases.tuned(**cases.SMALL):
            record = models.build(
                models.spec({"w": ("F16", call)}, allow_nonfinite=True), threads=2
            )
        assert models.load()["w"].isfinite().logical_not().any()
        if expected:
            assert record.nonfinite == expected
        else:
            assert record.nonfinite == {}
