"""Checks of tensors that are merged with what was measured of their models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import engine_cases as cases
from helpers.library_cases import measured
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import read_header
from shardmerge.check.shard import check_shard
from shardmerge.engine import make_tasks

_OUT, _IN = 31, 24


def built(
    step: str, folder: Path, dtype: torch.dtype = torch.float16, out: str = "F32"
) -> tuple[cases.Models, ShardSpec]:
    """Return a shard of one tensor that a step made of two layers and of what was measured."""
    models, spec = measured(step, folder, dtype, out, (_OUT, _IN))
    models.build(spec)
    return models, spec


def check(models: cases.Models, spec: ShardSpec) -> dict:
    return check_shard(spec, models.folder / "out.safetensors", models.paths, ())


@pytest.mark.parametrize("step", ["regmean_solution", "fisher_average"])
class TestEveryStep:
    @pytest.mark.parametrize(
        ("dtype", "out"),
        [(torch.float16, "BF16"), (torch.bfloat16, "F32"), (torch.float64, "F64")],
    )
    def test_right_shards_pass(
        self, step: str, dtype: torch.dtype, out: str, tmp_path: Path
    ) -> None:
        found = check(*built(step, tmp_path, dtype, out))
        assert (found["elements"], found["not_sampled"]) == (_OUT * _IN, [])

    def test_a_wrong_element_is_found(self, step: str, tmp_path: Path) -> None:
        models, spec = built(step, tmp_path)
        path = models.folder / "out.safetensors"
        data = bytearray(path.read_bytes())
        begin = read_header(path).tensors["w"].begin + 4 * 200
        value = torch.frombuffer(data, dtype=torch.float32, count=1, offset=begin)
        value *= 1.001
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"element \[8, 8\] is"):
            check(models, spec)


def test_fisher_averages_are_made_by_native_code(tmp_path: Path) -> None:
    _, spec = built("fisher_average", tmp_path)
    assert [task.kind for task in make_tasks(spec)] == ["native"]


def test_another_librarys_solution_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, spec = built("regmean_solution", tmp_path, torch.float64, "F64")
    monkeypatch.setattr("shardmerge.methods.measured.kernels._solved", torch.linalg.solve)
    assert 0 < check(models, spec)["largest_error_in_bounds"] <= 1
