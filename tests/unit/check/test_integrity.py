"""One flipped bit, anywhere, in a shard, a stored task vector or a record, is found and named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from helpers import kernel_cases
from helpers.built_model import LARGE, MERGED, build_model, check, flip, inputs_of, verify
from helpers.engine_cases import Models, call_of
from shardmerge.algebra import expression as ex
from shardmerge.algebra.samples import sample_runs
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import MERGEKIT
from shardmerge.base.safetensors import read_header
from shardmerge.check.shard import check_shard
from shardmerge.engine import build_shard
from shardmerge.engine.witness import Witness
from shardmerge.methods.registry import method
from shardmerge.package.index import checksums, load_records
from shardmerge.package.provenance import make_provenance
from shardmerge.plan.decide import load_plan
from shardmerge.plan.paths import record_path
from shardmerge.plan.records import load_record, recorded_tensors
from shardmerge.recipe.settings import load_settings
from shardmerge.run.built import Built


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("integrity"))
        yield build_model(models=LARGE, deltas="store")


@pytest.fixture
def built(original: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    shutil.copytree(Path.cwd(), tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return replace(original)


def outside_the_sample(path: Path) -> int:
    """Return a byte of a file's largest tensor that no sample reads."""
    tensors = read_header(path).tensors
    name = max(tensors, key=lambda n: tensors[n].end - tensors[n].begin)
    entry = tensors[name]
    runs = sample_runs(name, (entry.end - entry.begin) // 2)
    read = {first + i for first, count in runs for i in range(count)}
    element = next(i for i in range((entry.end - entry.begin) // 2) if i not in read)
    return entry.begin + 2 * element


def load_plan_of() -> Any:
    sources = {name: f"models/{name}" for name in ("lab/base", "lab/tuned", "lab/long")}
    settings = {"recipes": ["recipe.yaml"], "sources": sources, "deltas": "store"}
    return load_plan(load_settings(settings), say=lambda line: None)


def delta_jobs() -> Any:
    return load_plan_of().deltas


class TestWitness:
    @pytest.mark.parametrize("seed", range(8))
    def test_any_order_gives_the_hash(self, seed: int) -> None:
        chance = random.Random(seed)
        data = chance.randbytes(5000)
        parts = {"a": (10, 900), "b": (900, 900), "c": (1000, 4000), "d": (4000, 5000)}
        witness, again = Witness(parts), []
        places = [*range(0, 5000, 250)]
        if seed:
            chance.shuffle(places)
            places = places[: -seed or None] + places[:3]
        for place in places:
            witness.saw(place, memoryview(data)[place : place + 250])

        def read(offset: Any, into: Any) -> None:
            again.append(offset)
            into[:] = data[offset : offset + len(into)]

        found = witness.finish(read)
        assert found == {n: xxhash.xxh3_128(data[a:b]).hexdigest() for n, (a, b) in parts.items()}
        assert bool(again) == bool(seed), "in order nothing is read twice"


class TestShards:
    def test_bit_that_no_sample_reads(self, built: Built) -> None:
        job, _ = built.shard_with(MERGED)
        assert check(job)["sha256"] == load_record(record_path(job.output)).sha256
        flip(Path(job.output), outside_the_sample(Path(job.output)))
        with pytest.raises(UserError, match="is damaged: its hash") as error:
            check(job)
        assert job.output in str(error.value) and "run the workflow again" in str(error.value)

    def test_changed_hash_in_its_record(self, built: Built) -> None:
        """What goes into SHA256SUMS is not hashed a second time."""
        job, _ = built.shard_with(MERGED)
        record = Path(record_path(job.output))
        told = json.loads(record.read_text())
        record.write_text(json.dumps(told | {"sha256": f"{int(told['sha256'], 16) ^ 1:064x}"}))
        with pytest.raises(UserError, match="is damaged: its hash"):
            check(job)

    def test_record_of_an_earlier_version(self, built: Built) -> None:
        job, _ = built.shard_with(MERGED)
        record = Path(record_path(job.output))
        told = json.loads(record.read_text())
        del told["xxh3"]
        record.write_text(json.dumps(told))
        assert check(job)["sha256"] == told["sha256"]
        flip(Path(job.output), outside_the_sample(Path(job.output)))
        with pytest.raises(UserError, match=f"but {told['sha256']} was recorded"):
            check(job)

    def test_touched_after_its_check(self, built: Built) -> None:
        job, _ = built.shard_with(MERGED)
        os.utime(job.output)
        assert verify(built).passed
        flip(Path(job.output), outside_the_sample(Path(job.output)))
        with pytest.raises(UserError, match="is damaged"):
            verify(built)

    def test_check_of_an_earlier_file(self, built: Built) -> None:
        path = built.records("checks")[1]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
        with pytest.raises(UserError, match="was checked before it was made anew"):
            verify(built)

    def test_what_was_checked_how(self, built: Built) -> None:
        found = verify(built)
        assert found.hashed == found.shards
        assert found.recomputed_by_engine_steps == 0
        ways = found.copies + found.recomputed_independently
        assert ways + len(found.not_sampled) == found.tensors


class TestTaskVectors:
    def test_check_finds_a_bit_that_no_sample_reads(self, built: Built) -> None:
        job = delta_jobs()[0]
        check(job)
        flip(Path(job.output), outside_the_sample(Path(job.output)))
        with pytest.raises(UserError, match="is damaged: its hash"):
            check(job)

    def test_merge_finds_it_too(self, built: Built) -> None:
        """However long ago the file was checked."""
        job, spec = built.shard_with(MERGED)
        sources, deltas = inputs_of(job, spec)
        sums = {path: recorded_tensors(path) for path in deltas}
        output = Path("again.safetensors")
        record = build_shard(spec, sources, output, deltas=deltas, sums=sums)
        assert record.sha256 == load_record(record_path(job.output)).sha256
        output.unlink()
        (path,) = [d for d in deltas if _holds(d, spec)][:1]
        flip(path, outside_the_sample(path))
        with pytest.raises(UserError, match=r"stored task vectors in .* is damaged") as error:
            build_shard(spec, sources, output, deltas=deltas, sums=sums)
        assert f"Delete '{path}'" in str(error.value)
        assert not output.exists()

    def test_record_of_an_earlier_version(self, built: Built) -> None:
        job, spec = built.shard_with(MERGED)
        sources, deltas = inputs_of(job, spec)
        sums = {path: _hashes(path) for path in deltas}
        build_shard(spec, sources, Path("again.safetensors"), deltas=deltas, sums=sums)
        (path,) = [d for d in deltas if _holds(d, spec)][:1]
        flip(path, outside_the_sample(path))
        with pytest.raises(UserError, match=r"stored task vectors in .* is damaged"):
            build_shard(spec, sources, Path("more.safetensors"), deltas=deltas, sums=sums)

    def test_record_without_hashes(self, built: Built) -> None:
        path = Path(delta_jobs()[0].output)
        record = json.loads(Path(record_path(path)).read_text())
        Path(record_path(path)).write_text(json.dumps(record | {"tensors": {}}))
        with pytest.raises(UserError, match="does not tell the hashes of its task vectors"):
            recorded_tensors(path)


def _hashes(path: Path) -> dict[str, str]:
    """Return what earlier versions recorded of a shard of task vectors."""
    tensors, data = read_header(path).tensors, path.read_bytes()
    return {n: hashlib.sha256(data[e.begin : e.end]).hexdigest() for n, e in tensors.items()}


def _holds(path: Path, spec: Any) -> bool:
    from shardmerge.engine.stored import stored_deltas

    return bool(stored_deltas(spec, [path]))


class TestRecords:
    RIGHT = {"sha256": "0" * 64, "size": 3}  # noqa: RUF012

    @pytest.mark.parametrize(
        "change",
        [
            {"sha256": 3},
            {"sha256": "0" * 63 + "\n"},
            {"xxh3": "0" * 64},
            {"size": True},
            {"size": -1},
            {"size": 1e99},
            {"size": 10**40},
            {"spec": []},
            {"seconds": {"read": "x"}},
            {"seconds": {"read": float("nan")}},
            {"nonfinite": [1]},
            {"deltas": {"w": [[1, 2]]}},
            {"deltas": {"w": [[["m"], None, 2]]}},
            {"hashed": {"x": "0" * 64}},
            {"tensors": {"w": "x"}},
            {"whole_copy": 1},
        ],
    )
    def test_hostile_values(self, tmp_path: Path, change: dict[str, Any]) -> None:
        path = tmp_path / "model.json"
        path.write_text(json.dumps(self.RIGHT | change))
        with pytest.raises(UserError, match="is not the record of a merge job") as error:
            load_records([path])
        assert "made anew" in str(error.value)

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "9" * 10_000, '"\ud800"', "3"])
    def test_hostile_text(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "model.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=r"model\.json"):
            load_record(path)

    def test_what_jobs_write(self, built: Built) -> None:
        assert all(load_records(built.records()).values())


class TestPackage:
    def test_checksums_and_provenance_tell_the_same(self, built: Built) -> None:
        records, files = (
            load_records(built.records()),
            [built.folder / n for n in built.build.files],
        )
        path = built.folder / "provenance.json"
        build = built.build.digest
        found = make_provenance(
            build, built.description, records, verify(built), built.folder, files
        )
        path.write_text(json.dumps(found))
        assert "provenance.json" in checksums(built.folder, [*files, path], records)
        (built.folder / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"config\.json: provenance\.json tells another"):
            checksums(built.folder, [*files, path], records)

    @pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
    def test_damaged_notes_of_a_job_count_as_none(self, built: Built, text: str) -> None:
        plan = load_plan_of()
        job = plan.shards[0]
        state = Built(plan, keep_sources=False, keep_deltas=False)
        Path(record_path(job.output)).write_text(text)
        assert state.to_make(job) == job


class TestSources:
    def test_changed_while_it_is_merged(
        self, built: Built, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, spec = built.shard_with(MERGED)
        sources, deltas = inputs_of(job, spec)
        path = next(iter(sources.values()))

        def touch(done: Any, total: Any) -> None:
            flip(path, path.stat().st_size - 1)

        output = Path("again.safetensors")
        with pytest.raises(UserError, match="changed while it was read"):
            build_shard(spec, sources, output, deltas=deltas, progress=touch)
        assert not output.exists()

    def test_whole_copy_tells_the_hash_of_a_sampled_source(self, tmp_path: Path) -> None:
        models = Models(tmp_path, {"a": {"w": torch.arange(12).half()}})
        spec = models.spec({"w": ("F16", models.source("a"))})
        sampled = "sample:" + "0" * 64
        spec = replace(spec, files=dict.fromkeys(spec.files, sampled))
        record = models.build(spec, link="copy")
        assert record.whole_copy and record.hashed == {sampled: record.sha256}


class TestIndependence:
    """What the engine's own steps get wrong, a check finds."""

    @pytest.fixture
    def models(self, tmp_path: Path) -> Any:
        group = kernel_cases.ordinary("task_arithmetic", (6, 50), 7, torch.float16)
        return Models(tmp_path, {f"m{i}": {"w": tensor} for i, tensor in enumerate(group.tensors)})

    def spec_of(self, models: Any, name: Any, count: Any, code: Any = "F16", **values: Any) -> Any:
        group = kernel_cases.ordinary(name, (6, 50), count, torch.float16, **values)
        inputs = [ex.Cast(models.source(f"m{i}"), "F16") for i in range(len(group.tensors))]
        call = call_of(name, group, inputs)
        return models.spec({"w": (code, call)}, numerics=MERGEKIT)

    @pytest.mark.parametrize("code", ["F16", "BF16", "F32"])
    @pytest.mark.parametrize("count", [1, 2, 4, 6])
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("linear", {"normalize": True}),
            ("linear", {"normalize": False, "weight": 0.3}),
            ("task_arithmetic", {"normalize": True, "lambda": 1.3}),
            ("task_arithmetic", {"weight": -0.7}),
        ],
    )
    def test_right_ones_pass(
        self, models: Models, name: str, values: dict[str, Any], count: int, code: str
    ) -> None:
        spec = self.spec_of(models, name, count, code, **values)
        models.build(spec)
        found = check_shard(spec, models.folder / "out.safetensors", models.paths, [])
        assert found["recomputed_independently"] == 1

    @pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
    def test_wrong_translation_is_found(
        self, models: Models, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        right = method(name).steps

        def wrong(group: Any, writer: Any) -> Any:
            changed = tuple(w and w * 1.01 for w in group.per_input["weight"])
            return right(replace(group, per_input={**group.per_input, "weight": changed}), writer)

        monkeypatch.setattr(method(name), "steps", wrong)
        spec = self.spec_of(models, name, 2, normalize=False)
        models.build(spec)
        with pytest.raises(UserError, match="but must be"):
            check_shard(spec, models.folder / "out.safetensors", models.paths, [])

    def test_what_only_the_engine_can_tell_is_said(self, models: Models) -> None:
        spec = self.spec_of(models, "slerp", 2)
        models.build(spec)
        found = check_shard(spec, models.folder / "out.safetensors", models.paths, [])
        assert found["recomputed_by_engine_steps"] == 1
