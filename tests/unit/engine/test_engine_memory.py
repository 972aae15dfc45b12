"""The engine's memory: the same for any shard that streams, foretold for what must be whole."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import kernel_cases
from helpers.engine_cases import FILE
from shardmerge.algebra import expression as ex
from shardmerge.algebra import pieces
from shardmerge.algebra.arrange import arrange
from shardmerge.algebra.rows import ZERO, format_choice, format_rows
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.base.safetensors import write_header
from shardmerge.check.memory import check_bytes
from shardmerge.engine import make_tasks, workspace_bytes
from shardmerge.engine.memory import (
    CUDA_BYTES,
    STREAMING_BYTES,
    TUNING,
    ahead_bytes,
    block_length,
    held_bytes,
    ready_places,
)
from shardmerge.methods.registry import MergeMethod, method, methods

#: Of a job's own; the rest of what it asks for is left to the code of libraries.
LIMIT = 300_000_000


def passes_of_float32(declared: MergeMethod) -> bool:
    """Whether a method is declared as passes."""
    return bool(declared.kernel and declared.rendering(FLOAT32).passes)


def sparse(
    folder: Path, models: Iterable[str], code: str, shape: tuple[int, ...]
) -> dict[str, ex.Source]:
    """Write models of one tensor of zeros each, which take no disk; return the tensors."""
    header = write_header([("w", code, shape)], {"format": "pt"})
    size = math.prod(shape) * DTYPES[code].size
    for model in models:
        path = folder / f"{model}.safetensors"
        path.write_bytes(header)
        os.truncate(path, len(header) + size)
    return {model: ex.Source(model, FILE, "w", code, shape) for model in models}


def spec_of(code: str, expression: ex.Expression, numerics: Numerics = FLOAT32) -> ShardSpec:
    files = {(s.model, s.file): s.model for s in ex.sources(expression)}
    tensor = OutputTensor("w", code, expression.shape, expression)
    return ShardSpec((tensor,), files, numerics)


def call_of(name: str, sources: list[ex.Source], numerics: Numerics = FLOAT32) -> ex.Call:
    has_base = method(name).inputs.base == "required"
    group = kernel_cases.ordinary(name, (2, 2), models=len(sources) - has_base)
    inputs = sources if numerics == "float32" else [ex.Cast(s, s.dtype) for s in sources]
    return ex.Call(
        method=name,
        inputs=tuple(inputs),
        base=group.base,
        parameters=tuple(sorted(group.parameters.items())),
        per_input=tuple(sorted(group.per_input.items())),
        tensor="w",
        models=tuple(s.model for s in sources),
        output_shape=sources[0].shape,
    )


def measured(folder: Path, spec: ShardSpec, threads: int) -> int:
    """Return the peak memory of a process that builds a shard and does nothing else."""
    return measured_together(folder, {"shard": spec}, threads)["shard"]


def measured_together(folder: Path, specs: Mapping[str, ShardSpec], threads: int) -> dict[str, int]:
    """Return the peak memory of a process that builds some shards, after each of them."""
    script = (
        "import json, pathlib, sys\n"
        "from shardmerge.engine import build_shard\n"
        "from shardmerge.algebra.spec import ShardSpec\n"
        "folder, specs, threads = pathlib.Path(sys.argv[1]), sys.stdin.read(), int(sys.argv[2])\n"
        "peaks = {}\n"
        "for name, spec in json.loads(specs).items():\n"
        "    spec = ShardSpec.from_json(spec)\n"
        "    paths = {key: folder / f'{key[0]}.safetensors' for key in spec.files}\n"
        "    record = build_shard(spec, paths, folder / 'out.safetensors', threads=threads)\n"
        "    peaks[name] = record.peak_memory\n"
        "json.dump(peaks, sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(threads)],
        input=json.dumps({name: spec.to_json() for name, spec in specs.items()}),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "out.safetensors").unlink()
    return json.loads(done.stdout)


class TestStreaming:
    """Sums and elementwise methods take the same memory for every tensor and every shard."""

    def test_a_large_tensor(self, tmp_path: Path) -> None:
        s = sparse(tmp_path, "abq", "F16", (75_000, 2_000))  # 300 MB each
        delta = ex.Delta(s["a"], s["b"], "F16")
        spec = spec_of("F16", ex.Linear(((1.0, s["q"]), (0.4, delta))))
        assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES
        assert measured(tmp_path, spec, threads=2) <= LIMIT

    def test_many_threads_and_models_of_wide_types(self, tmp_path: Path) -> None:
        s = sparse(tmp_path, "abcdefgh", "F64", (1_000, 2_000))  # 16 MB each
        spec = spec_of("F32", ex.Linear(tuple((0.1, source) for source in s.values())))
        assert measured(tmp_path, spec, threads=16) <= LIMIT

    def test_rows_in_another_order(self, tmp_path: Path) -> None:
        s = sparse(tmp_path, "ab", "F16", (60_000, 1_000))  # 120 MB each
        order = list(range(60_000))
        random.Random(1).shuffle(order)
        taken = [ex.take_rows(s[model], format_rows(order)) for model in "ab"]
        choice = ex.Choice(tuple(taken), format_choice([(0,), (0, 1)] * 30_000))
        padding = format_rows([ZERO] * 59_999 + [0])
        padded = ex.Choice((choice, ex.take_rows(ex.Mean(choice), padding)), "0*59999,1*1")
        spec = spec_of("F16", padded)
        assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES
        assert workspace_bytes(make_tasks(spec_of("F16", padded, MERGEKIT))) == STREAMING_BYTES
        assert measured(tmp_path, spec, threads=2) <= LIMIT

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_rows_of_a_methods_result(self, tmp_path: Path, numerics: Numerics) -> None:
        s = sparse(tmp_path, "ab", "F16", (20_000, 1_000))  # 40 MB each
        order = [row // 4 * 4 for row in range(20_000)]
        random.Random(1).shuffle(order)
        call = call_of("slerp", list(s.values()), numerics)
        spec = spec_of("F16", ex.take_rows(call, format_rows([*order, ZERO])), numerics)
        assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES
        assert measured(tmp_path, spec, threads=2) <= LIMIT

    def test_vectors_that_are_rows_in_mergekit_numerics(self, tmp_path: Path) -> None:
        s = sparse(tmp_path, "abc", "F16", (10_000, 2_000))  # 40 MB each
        specs = {}
        for name, values in (
            ("nuslerp", {"nuslerp_flatten": False}),
            ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
            ("model_stock", {"filter_wise": True}),
            ("arcee_fusion", {}),
        ):
            call = call_of(name, list(s.values())[: 3 if name == "model_stock" else 2], MERGEKIT)
            parameters = {**dict(call.parameters), **values}
            call = replace(call, parameters=tuple(sorted(parameters.items())))
            spec = specs[f"{name} {values}"] = spec_of("F16", call, MERGEKIT)
            held = 80e6 if len(call.inputs) == 2 else 0
            assert 0 <= workspace_bytes(make_tasks(spec)) - STREAMING_BYTES - held < 100_000
        peaks = measured_together(tmp_path, specs, threads=2)
        assert {name: peak for name, peak in peaks.items() if peak > LIMIT} == {}

    def test_sums_of_rows(self, tmp_path: Path) -> None:
        """What is made is held, the matrix streams; here one row is a part of all sums."""
        s = sparse(tmp_path, "a", "F16", (60_000, 2_000))  # 240 MB
        s |= sparse(tmp_path, ["rows"], "I32", (15_000, 3))
        s |= sparse(tmp_path, ["weights"], "F32", (15_000, 3))
        made = ex.RowSums(s["a"], s["rows"], s["weights"])  # 120 MB in float32
        spec = spec_of("F16", made)
        foretold = workspace_bytes(make_tasks(spec))
        assert STREAMING_BYTES + 120e6 < foretold < STREAMING_BYTES + 400e6
        assert measured(tmp_path, spec, threads=2) <= foretold

    def test_a_stack_of_experts(self, tmp_path: Path) -> None:
        names = [f"e{i}" for i in range(16)]
        experts = sparse(tmp_path, names, "F16", (4_000, 2_000))  # 16 MB each
        base = sparse(tmp_path, ["base"], "F16", (16, 4_000, 2_000))["base"]
        made = pieces.stack([pieces.entire(name, (4_000, 2_000)) for name in names])
        delta = ex.Delta(arrange(made, experts), base, "F16")
        spec = spec_of("F16", ex.Linear(((1.0, base), (0.4, delta))))
        assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES
        assert measured(tmp_path, spec, threads=2) <= LIMIT

    def test_transposed_experts(self, tmp_path: Path) -> None:
        """Bands of them are held, and foretold."""
        (s,) = sparse(tmp_path, "a", "F16", (2, 10_000, 6_000)).values()  # 120 MB a matrix
        turned = arrange(pieces.transpose(pieces.entire(0, s.shape), 1, 2), {0: s})
        spec = spec_of("F32", ex.Linear(((0.5, turned),)))
        foretold = workspace_bytes(make_tasks(spec))
        assert STREAMING_BYTES < foretold < STREAMING_BYTES + 120e6
        assert measured(tmp_path, spec, threads=2) <= foretold

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_an_elementwise_method(self, tmp_path: Path, numerics: str) -> None:
        s = sparse(tmp_path, "abcdefg", "F32", (3_000, 2_000))  # 24 MB each
        spec = spec_of("F32", call_of("ram", list(s.values()), numerics), numerics)
        assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES
        assert block_length(make_tasks(spec)) < TUNING.block
        assert measured(tmp_path, spec, threads=6) <= LIMIT

    def test_methods_in_passes(self, tmp_path: Path) -> None:
        s = sparse(tmp_path, "abcd", "F16", (25_000, 2_000))  # 100 MB each
        specs = {}
        for name in (m.name for m in methods() if passes_of_float32(m)):
            sources = list(s.values())[: 4 if name == "model_stock" else 2]
            spec = specs[name] = spec_of("F16", call_of(name, sources))
            assert workspace_bytes(make_tasks(spec)) == STREAMING_BYTES
        peaks = measured_together(tmp_path, specs, threads=2)
        assert len(peaks) > 10
        assert {name: peak for name, peak in peaks.items() if peak > LIMIT} == {}

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    def test_sources_that_are_held(self, tmp_path: Path, numerics: Numerics) -> None:
        """As many tensors as there are, the sources of one are held at a time."""
        s = sparse(tmp_path, "ab", "F16", (12_000, 2_000))  # 48 MB each
        calls = [call_of(name, list(s.values()), numerics) for name in ("slerp", "nuslerp")]
        tensors = [
            OutputTensor(f"{number}", "F16", call.shape, call)
            for number, call in enumerate(calls * 2)
        ]
        files = {(source.model, source.file): source.model for source in s.values()}
        spec = ShardSpec(tuple(tensors), files, numerics)
        foretold = workspace_bytes(make_tasks(spec))
        assert 96e6 <= foretold - STREAMING_BYTES < 96.1e6 < TUNING.held
        assert measured(tmp_path, spec, 1) <= LIMIT
        ahead = ahead_bytes(make_tasks(spec))
        assert 96e6 <= ahead < 160e6
        for threads in (2, 4):
            # of each place but the first
            more = (ready_places(threads) - 1) * ahead
            assert measured(tmp_path, spec, threads) <= LIMIT + more

    @pytest.mark.slow
    def test_is_flat(self, tmp_path: Path) -> None:
        """Half a gigabyte or five, in tensors of 50 MB or in one of 1 GB."""
        peaks = []
        for tensors, rows in ((10, 25_000), (100, 25_000), (1, 500_000)):
            specs = [_one_of_many(tmp_path, f"{rows}-{i}", rows) for i in range(tensors)]
            files = {key: name for spec in specs for key, name in spec.files.items()}
            parts = tuple(tensor for spec in specs for tensor in spec.tensors)
            peaks.append(measured(tmp_path, ShardSpec(parts, files), threads=1))
            for path in tmp_path.glob("*.safetensors"):
                path.unlink()
        assert max(peaks) <= LIMIT
        assert max(peaks) < 1.3 * min(peaks)  # ten times as much to read


def _one_of_many(folder: Path, name: str, rows: int) -> ShardSpec:
    """Return the shard of one tensor of 2 kB rows, ``q + 0.4 (a - b)``, of models of its own."""
    models = [f"{letter}-{name}" for letter in "qab"]
    q, a, b = sparse(folder, models, "F16", (rows, 1_000)).values()
    spec = spec_of("F16", ex.Linear(((1.0, q), (0.4, ex.Delta(a, b, "F16")))))
    return replace(spec, tensors=(replace(spec.tensors[0], name=name),))


class TestWhole:
    """A method that must see whole tensors gets what its largest tensor needs."""

    @pytest.mark.parametrize(("name", "code"), [("arcee_fusion", "F64"), ("karcher", "F32")])
    def test_is_foretold(self, tmp_path: Path, name: str, code: str) -> None:
        s = sparse(tmp_path, "ab", code, (4_000, 2_000))  # 32 or 64 MB each
        spec = spec_of(code, call_of(name, list(s.values()), MERGEKIT), MERGEKIT)
        foretold, peak = workspace_bytes(make_tasks(spec)), measured(tmp_path, spec, threads=2)
        assert foretold > STREAMING_BYTES + 2 * 8e6 * (8 if code == "F64" else 4)
        assert peak <= foretold < 4 * peak  # how much of it pages take varies

    def test_a_choice_by_torchs_order_is_foretold(self, tmp_path: Path) -> None:
        """Four bytes of some of the elements, of one model at a time, and masks: it stays small."""
        count, models = 40_000_000, "abc"  # 80 MB each
        s = sparse(tmp_path, models, "F16", (count // 2_000, 2_000))
        for seed, model in enumerate(models):
            some = np.random.default_rng(seed).normal(size=1_000_000).astype("<f2").tobytes()
            with (tmp_path / f"{model}.safetensors").open("r+b") as file:
                file.seek(-2 * count, os.SEEK_END)
                file.write(some * (2 * count // len(some)))
        spec = spec_of("F16", call_of("ties", list(s.values()), MERGEKIT), MERGEKIT)
        foretold, peak = workspace_bytes(make_tasks(spec)), measured(tmp_path, spec, threads=2)
        assert STREAMING_BYTES + count < foretold < STREAMING_BYTES + 3.5 * count
        assert peak <= min(foretold, 500_000_000)
        assert check_bytes(make_tasks(spec)) == foretold

    @pytest.mark.parametrize(("name", "values"), [("ties", {"density": 1.0}), ("sce", {})])
    def test_what_chooses_nothing_streams(self, name: str, values: dict[str, float]) -> None:
        call = call_of(name, [ex.Source(m, FILE, "w", "F16", (5, 100)) for m in "abc"], MERGEKIT)
        shared = dict(call.parameters) | ({"select_topk": 1.0} if name == "sce" else {})
        each = {k: tuple(values.get(k, v) for v in row) for k, row in call.per_input}
        call = replace(
            call, parameters=tuple(sorted(shared.items())), per_input=tuple(sorted(each.items()))
        )
        (task,) = make_tasks(spec_of("F16", call, MERGEKIT))
        assert workspace_bytes([task]) == STREAMING_BYTES + held_bytes(task, TUNING.held)

    def test_where_torch_chooses_it_takes_more(self) -> None:
        shape = (1 << 20, 1 << 11)  # more elements than numbers of 32 bits can tell apart
        call = call_of("ties", [ex.Source(m, FILE, "w", "F16", shape) for m in "abc"], MERGEKIT)
        foretold = workspace_bytes(make_tasks(spec_of("F16", call, MERGEKIT)))
        assert foretold > STREAMING_BYTES + 20 * math.prod(shape)

    def test_is_that_of_the_largest_tensor(self) -> None:
        tensors = []
        for rows in (1_000, 5_000, 3_000):
            sources = [ex.Source(m, FILE, str(rows), "F16", (rows, 100)) for m in "ab"]
            call = call_of("slerp", sources, MERGEKIT)
            tensors.append(OutputTensor(str(rows), "F16", call.shape, call))
        files = {("a", FILE): "a", ("b", FILE): "b"}
        tasks = make_tasks(ShardSpec(tuple(tensors), files, MERGEKIT))
        alone = [workspace_bytes([task]) for task in tasks]
        assert workspace_bytes(tasks) == max(alone) == alone[1]

    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_a_card_adds_what_its_libraries_take(self, device: str) -> None:
        inputs = [ex.Source(m, FILE, "w", "F16", (5, 100)) for m in "ab"]
        for name, added in (("iso_c", CUDA_BYTES), ("slerp", 0)):  # the latter needs no card
            tasks = make_tasks(spec_of("F16", call_of(name, inputs)))
            assert workspace_bytes(tasks, device) == workspace_bytes(tasks) + added

    def test_foretelling_needs_no_torch(self) -> None:
        script = (
            "import sys\n"
            "from shardmerge.engine import make_tasks, workspace_bytes\n"
            "from shardmerge.algebra.spec import ShardSpec\n"
            "import json\n"
            "spec = ShardSpec.from_json(json.loads(sys.stdin.read()))\n"
            "assert workspace_bytes(make_tasks(spec)) > 0\n"
            "assert 'torch' not in sys.modules\n"
        )
        sources = [ex.Source(m, FILE, "w", "F16", (100, 100)) for m in "ab"]
        subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(spec_of("F16", call_of("slerp", sources)).to_json()),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
            check=True,
        )
