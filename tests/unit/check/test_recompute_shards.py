"""check_shard: right shards pass, and whatever is wrong with one is found and named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import check_shard as command
from helpers.built_model import LARGE, MERGED, RECIPE, Built, build_model, check, flip, inputs_of
from helpers.models import save_model
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.base.safetensors import read_header
from shardmerge.check import kernels
from shardmerge.check.shard import check_shard
from shardmerge.plan.files import load_spec
from shardmerge.plan.paths import record_path

COPIED = "model.layers.1.self_attn.q_proj.weight"
TIES_OF_A_SUM = """\
name: soup
merge_method: linear
models:
  - {model: lab/tuned, parameters: {weight: 0.3}}
  - {model: lab/long, parameters: {weight: 0.6}}
dtype: float32
---
name: merged
merge_method: ties
base_model: lab/base
models:
  - {model: soup, parameters: {weight: 0.7, density: 0.4}}
  - {model: lab/long, parameters: {weight: 0.5, density: 0.6}}
dtype: float16
"""
SLERP = """\
name: merged
merge_method: slerp
base_model: lab/base
models:
  - model: lab/base
  - model: lab/long
parameters: {t: 0.3}
dtype: bfloat16
"""


@pytest.fixture(scope="module", params=[FLOAT32, MERGEKIT])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield build_model(numerics=request.param, deltas="store")


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> tuple[Any, ...]:
    """A copy of the shard that holds a merged tensor, to be damaged: job and path."""
    job, _ = built.shard_with(MERGED)
    path = tmp_path / "shard.safetensors"
    shutil.copy(job.output, path)
    return job, path


def merged(found: dict) -> int:
    """Return how many tensors were recomputed, by whatever way."""
    return found["recomputed_independently"] + found["recomputed_by_engine_steps"]


class TestRightShards:
    def test_every_element_of_small_tensors(self, built: Built) -> None:
        total = 0
        for job in built.build.shards:
            found = check(job)
            spec = load_spec(job.digest)
            assert found["passed"] is True
            assert found["spec"] == job.digest
            assert found["not_sampled"] == []
            assert found["undecided"] == found["nonfinite"] == 0
            assert found["tensors"] == found["copies"] + merged(found)
            assert found["elements"] == sum(int(np.prod(t.shape)) for t in spec.tensors)
            assert found["largest_error_in_bounds"] <= 1
            total += merged(found)
        assert total >= 2

    def test_large_tensors_are_sampled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        built = build_model(models=LARGE)
        job, spec = built.shard_with(MERGED)
        count = sum(int(np.prod(t.shape)) for t in spec.tensors)
        assert 0 < check(job)["elements"] < count

    @pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT])
    @pytest.mark.parametrize("recipe", [SLERP, TIES_OF_A_SUM], ids=["slerp", "ties"])
    def test_whole_methods(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, numerics: Numerics
    ) -> None:
        monkeypatch.chdir(tmp_path)
        built = build_model(recipe, numerics=numerics)
        assert sum(merged(check(job)) for job in built.build.shards) > 20

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("out", ["float16", "bfloat16", "float32", "float64"])
    def test_dtypes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, out: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        built = build_model(RECIPE.replace("float16", out), models={"dtype": dtype})
        job, _ = built.shard_with(MERGED)
        assert merged(check(job)) >= 1

    def test_too_large_to_recompute_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        text = SLERP.replace("merge_method: slerp", "merge_method: karcher")
        built = build_model(text, numerics=MERGEKIT)
        monkeypatch.setattr(kernels, "WHOLE", 100)
        job, spec = built.shard_with(MERGED)
        found = check(job)
        large = {t.name for t in spec.tensors if np.prod(t.shape) > 100}
        assert set(found["not_sampled"]) == large
        assert found["elements"] == sum(
            int(np.prod(t.shape)) for t in spec.tensors if t.name not in large
        )


class TestDamage:
    def test_every_bit_of_a_merged_tensor(self, built: Built, copy: tuple[Any, ...]) -> None:
        """The output's last place is half a unit of rounding away, so any flip is seen."""
        job, path = copy
        entry = read_header(path).tensors[MERGED]
        for element in range(0, 128, 9):
            for bit in (0, 3, 9, 14, 15):
                offset = entry.begin + 2 * element + bit // 8
                flip(path, offset, bit % 8)
                with pytest.raises(UserError) as error:
                    check(job, path)
                assert MERGED in str(error.value)
                assert str([element // 16, element % 16]) in str(error.value)
                flip(path, offset, bit % 8)
        assert check(job, path)["passed"]

    def test_copied_tensor(self, copy: tuple[Any, ...]) -> None:
        job, path = copy
        entry = read_header(path).tensors[COPIED]
        flip(path, entry.begin + 2 * 37)
        with pytest.raises(UserError, match=r"element \[2, 5\] is .* must be"):
            check(job, path)

    def test_sampled_element_of_a_large_tensor(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        built = build_model(models=LARGE)
        job, _spec = built.shard_with(MERGED)
        path, last = Path(job.output), [191, 63]
        flip(path, read_header(path).tensors[MERGED].end - 2)
        with pytest.raises(UserError) as error:
            check(job)
        assert str(last) in str(error.value)

    def test_bytes_of_the_header(self, copy: tuple[Any, ...]) -> None:
        job, path = copy
        for offset in range(0, read_header(path).size, 3):
            flip(path, offset, offset % 8)
            with pytest.raises(UserError):
                check(job, path)
            flip(path, offset, offset % 8)

    @pytest.mark.parametrize("size", [-1, 1])
    def test_length(self, copy: tuple[Any, ...], size: int) -> None:
        job, path = copy
        data = path.read_bytes()
        path.write_bytes(data[:size] if size < 0 else data + b"\0")
        with pytest.raises(UserError, match="shard"):
            check(job, path)

    def test_other_source(self, built: Built, tmp_path: Path) -> None:
        """A source that is not the one that was merged."""
        job, spec = built.shard_with(MERGED)
        sources, deltas = inputs_of(job, spec)
        (key, original), *_ = [(k, p) for k, p in sources.items() if k[0] == "lab/long"]
        tensors = {name: t + 0.25 for name, t in load_file(original).items()}
        other = save_model(tmp_path / "other", tensors) / "model.safetensors"
        with pytest.raises(UserError, match="must be"):
            check_shard(spec, Path(job.output), sources | {key: other}, deltas)

    def test_source_without_the_tensor(self, built: Built, tmp_path: Path) -> None:
        job, spec = built.shard_with(MERGED)
        sources, deltas = inputs_of(job, spec)
        key = next(k for k in sources if k[0] == "lab/long")
        other = save_model(tmp_path / "other", {"x": torch.zeros(2)}) / "model.safetensors"
        with pytest.raises(UserError, match="no such tensor"):
            check_shard(spec, Path(job.output), sources | {key: other}, deltas)

    def test_other_plan(self, built: Built, tmp_path: Path) -> None:
        job, spec = built.shard_with(MERGED)
        sources, deltas = inputs_of(job, spec)
        with pytest.raises(UserError, match="another order"):
            changed = replace(spec, tensors=spec.tensors[::-1])
            check_shard(changed, Path(job.output), sources, deltas)
        with pytest.raises(UserError, match="stray"):
            changed = replace(spec, tensors=spec.tensors[1:])
            check_shard(changed, Path(job.output), sources, deltas)
        with pytest.raises(UserError, match="instead of"):
            first = replace(spec.tensors[0], dtype="BF16")
            changed = replace(spec, tensors=(first, *spec.tensors[1:]))
            check_shard(changed, Path(job.output), sources, deltas)


class TestNonfinite:
    """Sums that overflow float16, allowed and not."""

    @pytest.fixture
    def shard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.chdir(tmp_path)
        recipe = RECIPE.replace("0.75", "3e8")
        built = build_model(recipe, allow_nonfinite=True)
        return built.shard_with(MERGED)

    def test_counted(self, shard: tuple[Any, ...]) -> None:
        found = check(shard[0])
        assert found["nonfinite"] > 0

    def test_refused_where_not_allowed(self, shard: tuple[Any, ...]) -> None:
        job, spec = shard
        sources, deltas = inputs_of(job, spec)
        strict = replace(spec, allow_nonfinite=False)
        with pytest.raises(UserError, match=r"is -?inf"):
            check_shard(strict, Path(job.output), sources, deltas)


class TestCommand:
    def test_record(
        self,
        built: Built,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        job, _ = built.shard_with(MERGED)
        output = tmp_path / "checks" / "a.json"
        arguments = ["--spec", job.digest, "--shard", job.output, "--sources", *job.sources]
        arguments += ["--record", record_path(job.output)]
        arguments += ["--deltas", *job.deltas, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["check_shard.py", *arguments])
        command.main()
        assert json.loads(output.read_text()) == check(job)
        assert "are right" in capsys.readouterr().out

    def test_sources_missing(
        self, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, _ = built.shard_with(MERGED)
        arguments = ["--spec", job.digest, "--shard", job.output, "--output", "x.json"]
        arguments += ["--record", record_path(job.output)]
        monkeypatch.setattr(sys, "argv", ["check_shard.py", *arguments])
        with pytest.raises(UserError, match="0 are given"):
            command.main()
