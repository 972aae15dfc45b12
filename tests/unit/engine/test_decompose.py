"""Factors of low rank: nearest of their rank, as numpy has them, and the same in every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shardmerge.algebra.factorization import FactorSpec
from shardmerge.engine.decompose import (
    balanced,
    concatenated,
    decompose,
    decompose_products,
    product_squares,
    rank_of,
    squared_error,
    sum_of_squares,
)


def spec(rank: int | None = 4, **changes: object) -> FactorSpec:
    values = {
        "update": "0" * 64,
        "modules": (),
        "saved": (),
        "decomposition": "exact",
        "rank": rank,
        "energy": None,
        "cut": None,
        "alpha": None,
        "seed": 0,
        "dtype": "F32",
    }
    return FactorSpec(**values | changes)


def matrix(rows: int, columns: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=generator)
    left = torch.randn(rows, rank, generator=generator)
    return left @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize("how", ["exact", "randomized"])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (48, 48)])
def test_what_has_the_rank_is_found_again(how: str, shape: tuple[int, int]) -> None:
    whole = matrix(*shape, rank=3)
    found = decompose(whole, spec(8, decomposition=how), "x")
    rank = rank_of(found, spec(8), shape)
    assert rank == 3
    b, a = balanced(found, rank, 1.0)
    assert squared_error(whole, b, a, 1.0) <= 1e-10 * float(sum_of_squares(whole))


def test_the_error_is_that_of_the_best_approximation_by_numpy() -> None:
    whole = matrix(30, 20)
    b, a = balanced(decompose(whole, spec(5), "x"), 5, 1.0)
    values = np.linalg.svd(whole.double().numpy(), compute_uv=False)
    wanted = float((values[5:] ** 2).sum())
    assert squared_error(whole, b, a, 1.0) == pytest.approx(wanted, rel=1e-5)


def test_a_random_projection_is_near_the_best_where_values_fall() -> None:
    left, _ = torch.linalg.qr(matrix(80, 60))
    right, _ = torch.linalg.qr(matrix(60, 60, seed=1))
    values = 0.7 ** torch.arange(60)
    whole = (left * values) @ right
    b, a = balanced(decompose(whole, spec(6, decomposition="randomized"), "x"), 6, 1.0)
    best = float((values[6:] ** 2).sum())
    assert squared_error(whole, b, a, 1.0) <= 1.0001 * best


def test_energy_decides_the_rank() -> None:
    whole = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))  # 9, 4 and 1 of 14
    for energy, rank in ((0.5, 1), (9 / 14, 1), (0.65, 2), (13 / 14, 2), (0.95, 3), (1.0, 3)):
        asked = spec(4, energy=energy)
        assert rank_of(decompose(whole, asked, "x"), asked, (4, 4)) == rank


def test_a_cut_leaves_out_values_up_to_it() -> None:
    asked = spec(4, cut=2.0)
    whole = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    assert rank_of(decompose(whole, asked, "x"), asked, (4, 4)) == 1


def test_zeros_have_no_factors() -> None:
    whole = torch.zeros(5, 7)
    assert rank_of(decompose(whole, spec(), "x"), spec(), (5, 7)) == 0


def test_factors_are_balanced_whatever_alpha_says() -> None:
    found = decompose(matrix(9, 7), spec(4), "x")
    b, a = balanced(found, 4, 0.25)
    assert torch.allclose(b.t() @ b, a @ a.t(), atol=1e-4)
    assert torch.allclose(0.25 * b @ a, (found.left * found.values) @ found.right, atol=1e-5)


def test_products_are_decomposed_without_their_sum() -> None:
    pairs = [(matrix(20, 3, seed=i), matrix(3, 15, seed=9 + i)) for i in range(2)]
    whole = sum(b @ a for b, a in pairs)
    found = decompose_products(pairs, spec(6))
    assert found.values.numpy() == pytest.approx(torch.linalg.svdvals(whole)[:6].numpy(), rel=1e-4)
    assert found.squares == pytest.approx(float(whole.square().sum()), rel=1e-5)
    b, a = balanced(found, 6, 1.0)
    assert torch.allclose(b @ a, whole, atol=1e-4)


def test_concatenated_factors_add_up() -> None:
    pairs = [(matrix(4, 2, seed=i), matrix(2, 5, seed=9 + i)) for i in range(3)]
    b, a = concatenated(pairs)
    assert (b.shape, a.shape) == ((4, 6), (6, 5))
    assert torch.allclose(b @ a, sum(x @ y for x, y in pairs), atol=1e-5)
    assert product_squares((b, a)) == pytest.approx(float((b @ a).square().sum()), rel=1e-5)


@pytest.mark.parametrize("how", ["exact", "randomized"])
def test_two_runs_have_the_same_bits(how: str) -> None:
    asked = spec(4, decomposition=how, seed=7)
    one, two = (balanced(decompose(matrix(70, 50), asked, "x"), 4, 1.0) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_the_largest_element_of_each_row_is_positive() -> None:
    _, a = balanced(decompose(matrix(9, 7), spec(4), "x"), 4, 1.0)
    assert all(row[row.abs().argmax()] > 0 for row in a)
