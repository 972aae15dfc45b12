"""Files of factors: written as peft reads them, and damage of every kind is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardmerge.algebra.factorization import FactorModule, FactorRecord, FactorSpec
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.check.factors import check_factors
from shardmerge.engine.factors import build_factors


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def spec(*modules: FactorModule, **changes: Any) -> FactorSpec:
    values: dict[str, Any] = {
        "update": "0" * 64,
        "modules": modules,
        "saved": (),
        "decomposition": "exact",
        "rank": 3,
        "energy": None,
        "cut": None,
        "alpha": None,
        "seed": 0,
        "dtype": "F32",
    }
    return FactorSpec(**values | changes)


def build(asked: FactorSpec, folder: Path, **tensors: torch.Tensor) -> tuple[FactorRecord, Path]:
    save_file({k.replace("__", "."): v for k, v in tensors.items()}, folder / "update.safetensors")
    output = folder / "factors.safetensors"
    record = build_factors(asked, folder / "update.safetensors", output)
    found = check_factors(asked, folder / "update.safetensors", output, record)
    assert found["largest_share_of_bounds"] < 1
    return record, output


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("how", ["exact", "randomized"])
@pytest.mark.parametrize("alpha", [None, 7.0])
def test_a_file_passes_its_check(tmp_path: Path, dtype: str, how: str, alpha: float) -> None:
    module = FactorModule(name="m", tensor="w")
    asked = spec(module, dtype=dtype, decomposition=how, alpha=alpha)
    record, output = build(asked, tmp_path, w=random(40, 50))
    assert record.sha256 == sha256_of(output)
    shapes = {k: tuple(v.shape) for k, v in load_file(output).items()}
    prefix = "base_model.model.m.lora_"
    assert shapes == {f"{prefix}B.weight": (40, 3), f"{prefix}A.weight": (3, 50)}


def test_zeros_are_left_out_and_saved_tensors_copied(tmp_path: Path) -> None:
    module = FactorModule(name="m", tensor="w")
    asked = spec(module, saved=(("n", "base_model.model.n"),))
    norm = random(8).half()
    record, output = build(asked, tmp_path, w=torch.zeros(4, 6), n=norm)
    assert record.modules[0].rank == 0
    (name, tensor), *others = load_file(output).items()
    assert (name, others) == ("base_model.model.n", [])
    assert torch.equal(tensor, norm)


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts_are_put_together_as_peft_does(tmp_path: Path, transposed: bool) -> None:
    # peft's ParamWrapper.get_delta_weight
    module = FactorModule(name="e.up", tensor="w", kind="experts", transposed=transposed)
    whole = torch.stack([random(10, 2) @ random(2, 12) * i for i in range(4)])
    record, output = build(spec(module), tmp_path, w=whole.mT.contiguous() if transposed else whole)
    made = load_file(output)
    a = made["base_model.model.e.lora_A.weight"].reshape(4, -1, 12)
    b = made["base_model.model.e.lora_B.weight"].reshape(10, -1, 4)
    assert torch.allclose(torch.einsum("ore,eri->eoi", b, a), whole, atol=1e-5)
    assert record.modules[0].kept == (0, 2, 2, 2)
    assert record.modules[0].rank == 3


def test_an_embedding_has_peft_names(tmp_path: Path) -> None:
    module = FactorModule(name="embed", tensor="w", kind="embedding", transposed=True)
    whole = random(20, 2) @ random(2, 6)
    _, output = build(spec(module), tmp_path, w=whole)
    made = load_file(output)
    a, b = (made[f"base_model.model.embed.lora_embedding_{x}"] for x in "AB")
    assert torch.allclose((b @ a).t(), whole, atol=1e-5)


def test_adapters_side_by_side(tmp_path: Path) -> None:
    module = FactorModule(name="m", tensor="w", products=2)
    parts = {
        f"w__{x}__{i}": t
        for i in range(2)
        for x, t in (("b", random(9, 2 + i)), ("a", random(2 + i, 7)))
    }
    asked = spec(module, decomposition="concatenate", rank=None)
    record, output = build(asked, tmp_path, **parts)
    made = load_file(output)
    a, b = (made[f"base_model.model.m.lora_{x}.weight"] for x in "AB")
    assert record.modules[0].rank == 5
    assert torch.equal(a[:2], parts["w__a__0"])
    assert torch.allclose(b @ a, sum(parts[f"w__b__{i}"] @ parts[f"w__a__{i}"] for i in range(2)))


def test_nan_has_no_factors(tmp_path: Path) -> None:
    whole = random(4, 6)
    whole[1, 1] = float("nan")
    with pytest.raises(UserError, match="'m' holds infinite values or NaN"):
        build(spec(FactorModule(name="m", tensor="w")), tmp_path, w=whole)
    assert not (tmp_path / "factors.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["update.safetensors"]


def _other_direction(made: dict[str, torch.Tensor]) -> None:
    """Put the fourth singular direction in place of the third: another subspace, as orthogonal."""
    u, s, v = torch.linalg.svd(random(40, 50), full_matrices=False)
    keep = [0, 1, 3]
    made["base_model.model.m.lora_B.weight"] = u[:, keep] * s[keep].sqrt()
    made["base_model.model.m.lora_A.weight"] = s[keep].sqrt()[:, None] * v[keep]


def _scaled(made: dict[str, torch.Tensor]) -> None:
    made["base_model.model.m.lora_B.weight"] *= 1.01


def _turned(made: dict[str, torch.Tensor]) -> None:
    made["base_model.model.m.lora_B.weight"] *= -1


def _unbalanced(made: dict[str, torch.Tensor]) -> None:
    made["base_model.model.m.lora_B.weight"] *= 2
    made["base_model.model.m.lora_A.weight"] /= 2


@pytest.mark.parametrize("damage", [_other_direction, _scaled, _turned, _unbalanced])
def test_other_factors_are_found(tmp_path: Path, damage: Callable[..., None]) -> None:
    asked = spec(FactorModule(name="m", tensor="w"))
    record, output = build(asked, tmp_path, w=random(40, 50))
    made = load_file(output)
    damage(made)
    save_file(made, output)
    update = tmp_path / "update.safetensors"
    with pytest.raises(UserError, match="is not as it was written"):
        check_factors(asked, update, output, record)
    record = dataclasses.replace(record, sha256=sha256_of(output))
    with pytest.raises(UserError, match="module 'm'"):
        check_factors(asked, update, output, record)


def test_an_error_that_was_recorded_wrongly_is_found_too(tmp_path: Path) -> None:
    """Whoever records what the factors miss can still not pass a worse subspace as the best."""
    asked = spec(FactorModule(name="m", tensor="w"))
    record, output = build(asked, tmp_path, w=random(40, 50))
    made = load_file(output)
    _other_direction(made)
    save_file(made, output)
    values = torch.linalg.svdvals(random(40, 50)).double()
    kept = values[[0, 1, 3]].tolist()
    error = float((values.square().sum() - sum(v * v for v in kept)).sqrt())
    told = dataclasses.replace(record.modules[0], values=tuple(kept), error=error)
    record = dataclasses.replace(record, modules=(told,), sha256=sha256_of(output))
    with pytest.raises(UserError, match="a larger part of the update was left out"):
        check_factors(asked, tmp_path / "update.safetensors", output, record)


def test_a_saved_tensor_that_is_not_the_models_is_found(tmp_path: Path) -> None:
    asked = spec(saved=(("n", "base_model.model.n"),))
    record, output = build(asked, tmp_path, n=random(8))
    save_file({"base_model.model.n": random(8) + 1}, output)
    record = dataclasses.replace(record, sha256=sha256_of(output))
    with pytest.raises(UserError, match=r"tensor 'base_model\.model\.n' is not the model's"):
        check_factors(asked, tmp_path / "update.safetensors", output, record)
