"""Checks of methods whose bits a library decides: by the bounds that the methods know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import engine_cases as cases
from helpers.library_cases import decomposed
from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import read_header
from shardmerge.check.shard import check_shard
from shardmerge.methods.registry import methods
from shardmerge.methods.spectral import decompose

NAMES = [m.name for m in methods() if m.bounds]


def built(
    name: str, folder: Path, code: str = "F16", out: str = "F32", tensors: Any = None
) -> tuple[cases.Models, ShardSpec]:
    """Return a shard of one tensor that a method made of fine-tunes of one base."""
    models, spec = decomposed(name, folder, code, out, tensors)
    models.build(spec)
    return models, spec


def check(models: cases.Models, spec: ShardSpec) -> dict[str, Any]:
    return check_shard(spec, models.folder / "out.safetensors", models.paths, ())


def change(models: cases.Models, element: int, by: float) -> None:
    """Change an element of the shard by a share of itself."""
    path = models.folder / "out.safetensors"
    begin = read_header(path).tensors["w"].begin + 4 * element
    data = bytearray(path.read_bytes())
    value = torch.frombuffer(data, dtype=torch.float32, count=1, offset=begin)
    value *= 1 + by
    path.write_bytes(data)


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    @pytest.mark.parametrize(("code", "out"), [("F16", "BF16"), ("BF16", "F32"), ("F64", "F64")])
    def test_right_shards_pass(self, name: str, code: str, out: str, tmp_path: Path) -> None:
        found = check(*built(name, tmp_path, code, out))
        assert (found["elements"], found["not_sampled"]) == (48 * 31, [])

    def test_another_librarys_shards_pass(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models, spec = built(name, tmp_path, "F64", "F64")
        ours = decompose._svd

        def theirs(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
            left, values, right = ours(matrix.flip(0, 1))
            return left.flip(0), values, right.flip(0)

        monkeypatch.setattr(decompose, "_svd", theirs)
        assert 0 < check(models, spec)["largest_error_in_bounds"] <= 1

    def test_a_wrong_element_is_found(self, name: str, tmp_path: Path) -> None:
        models, spec = built(name, tmp_path)
        change(models, 700, 1e-3)
        with pytest.raises(UserError, match=r"element \[22, 18\] is"):
            check(models, spec)


def test_what_a_library_decides_is_told(tmp_path: Path) -> None:
    """Half of two equal singular values is kept: which half is the library's choice."""
    tensors = [torch.zeros(2, 2), torch.eye(2), torch.diag(torch.tensor([3.0, 1.0]))]
    found = check(*built("tsv_m", tmp_path, "F32", "F32", tensors))
    assert (found["not_sampled"], found["elements"]) == (["w"], 0)


def test_inputs_that_are_sums_carry_their_errors(tmp_path: Path) -> None:
    models, spec = built("iso_c", tmp_path)
    (tensor,) = spec.tensors
    first, second, *others = tensor.expression.inputs
    total = ex.Linear(((0.3, second), (0.7, first)))
    call = replace(tensor.expression, inputs=(first, total, *others))
    spec = replace(spec, tensors=(replace(tensor, expression=call),))
    models.build(spec, name="out.safetensors")
    assert check(models, spec)["elements"] == 48 * 31
