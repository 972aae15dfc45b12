"""Merges of adapters in the space that they share, by hand and beside the paper's formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shardmerge.algebra.factorization import AlignedMerge, FactorModule
from shardmerge.engine.aligned import aligned


def module(method: str, count: int, weights: list[float], **parameters: Any) -> FactorModule:
    per_input = {"weight": (None, *weights)}
    if "density" in parameters:
        per_input["density"] = (None, *[parameters.pop("density")] * count)
    merge = AlignedMerge(
        method=method,
        base=0,
        parameters=tuple(sorted(parameters.items())),
        per_input=tuple(sorted(per_input.items())),
        models=("base", *(f"m{i}" for i in range(count))),
        products=(0, *[1] * count),
    )
    return FactorModule(name="m", tensor="w", products=count, merge=merge)


PLAIN = {"normalize": False, "rescale": False, "lambda": 1.0, "int8_mask": False}
DARE = PLAIN | {"rescale": True, "seed": 3}


def test_by_hand() -> None:
    # D_1 = (3, 0; 0, 0), D_2 = (0, 4; 0, 0): one direction, length 5, V_1 = (.6, 0), V_2 = (0, .8)
    one = torch.tensor([[1.0], [0.0]])
    pairs = [(one, torch.tensor([[3.0, 0.0]])), (one, torch.tensor([[0.0, 4.0]]))]
    b, a = aligned(pairs, module("ties", 2, [1.0, 1.0], density=1.0, **PLAIN))
    assert (b.shape, a.shape) == ((2, 1), (1, 2))
    assert float(b.norm()) == pytest.approx(5.0)
    assert torch.allclose(a.abs(), torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(b @ a, torch.tensor([[3.0, 4.0], [0.0, 0.0]]), atol=1e-6)


def test_signs_are_elected_in_the_shared_space() -> None:
    # D_1 = 3 e, D_2 = -4 e in the same place: V_1 = .6, V_2 = -.8; the larger sign wins
    one = torch.tensor([[1.0], [0.0]])
    pairs = [(one, torch.tensor([[3.0, 0.0]])), (one, torch.tensor([[-4.0, 0.0]]))]
    b, a = aligned(pairs, module("ties", 2, [1.0, 1.0], density=1.0, **PLAIN))
    assert torch.allclose(b @ a, torch.tensor([[-4.0, 0.0], [0.0, 0.0]]), atol=1e-6)


def test_as_the_paper_has_it() -> None:
    """SVD of the whole updates side by side, then TIES of the parts of V as it is defined."""
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(20, 3, generator=generator), torch.randn(3, 14, generator=generator))
        for _ in range(3)
    ]
    weights, density = [0.5, 1.0, 2.0], 0.4
    u, s, v = torch.linalg.svd(torch.cat([b @ a for b, a in pairs], dim=1).double())
    parts = [part[:9] for part in v[:, :42].split(14, dim=1)]
    trimmed = []
    for part, weight in zip(parts, weights, strict=True):
        count = int(density * part.numel())
        least = part.abs().flatten().sort(descending=True).values[count - 1]
        trimmed.append(weight * part * (part.abs() >= least))
    total = sum(trimmed)
    agree = [part * (part.sign() == total.sign()) for part in trimmed]
    wanted = (u[:, :9] * s[:9]) @ sum(agree)
    b, a = aligned(pairs, module("ties", 3, weights, density=density, **PLAIN))
    assert b.shape[1] == 9
    assert torch.allclose((b @ a).double(), wanted, atol=1e-3)


def test_a_sum_is_the_same_in_any_space() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(9, 2, generator=generator), torch.randn(2, 8, generator=generator))
        for _ in range(2)
    ]
    asked = module("dare_linear", 2, [0.5, -1.0], density=1.0, **DARE)
    b, a = aligned(pairs, asked)
    wanted = 0.5 * pairs[0][0] @ pairs[0][1] - pairs[1][0] @ pairs[1][1]
    assert torch.allclose(b @ a, wanted, atol=1e-4)


def test_dare_drops_elements_of_the_parts_and_is_the_same_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(30, 2, generator=generator), torch.randn(2, 40, generator=generator))
        for _ in range(2)
    ]
    made = [
        aligned(
            pairs,
            module("dare_linear", 2, [1.0, 1.0], density=0.5, **DARE),
        )
        for _ in range(2)
    ]
    assert torch.equal(made[0][1], made[1][1])
    assert 0.15 < float((made[0][1] == 0).float().mean()) < 0.35  # both dropped: a quarter
