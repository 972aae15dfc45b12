"""Two factors of low rank for a matrix: by singular values, by random projection, or as given.

Best approximation of a rank: Eckart and Young 1936, https://doi.org/10.1007/BF02288367. Random
projection: Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061. Bits depend on the
library that computes singular values; the check of the factors is by bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from shardmerge.algebra.factorization import FactorSpec

#: Columns of a random projection beyond the rank, and how often it is sharpened.
OVERSAMPLING, POWERS = 16, 4
#: A pair of factors (b, a): [rows, rank] and [rank, columns].
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Decomposition:
    """A matrix as singular vectors and values, the largest first.

    Args:
        left: [rows, count], orthonormal columns.
        values: [count].
        right: [count, columns], orthonormal rows.
        squares: The matrix's sum of squares.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    squares: float


def decompose(matrix: torch.Tensor, spec: FactorSpec, name: str) -> Decomposition:
    """Return the singular values and vectors of a matrix that a specification asks for.

    Args:
        matrix: [rows, columns], float32 or float64.
        spec: Says which way, and how many at most.
        name: Of the tensor: random projections are keyed by it.
    """
    squares = float(sum_of_squares(matrix))
    most = min(matrix.shape) if spec.rank is None else min(spec.rank, *matrix.shape)
    if spec.decomposition == "randomized" and most + OVERSAMPLING < min(matrix.shape):
        left, values, right = _randomized(matrix, most, _seed(spec.seed, name))
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return Decomposition(left[:, :most], values[:most], right[:most], squares)


def decompose_products(pairs: Sequence[Pair], spec: FactorSpec) -> Decomposition:
    """Return the same of a sum of products of factors, without making the matrix.

    Args:
        pairs: Factors of each product.
        spec: Says how many at most.
    """
    left, core, right = _core(concatenated(pairs))
    u, values, v = torch.linalg.svd(core, full_matrices=False)
    most = len(values) if spec.rank is None else min(spec.rank, len(values))
    squares = float(sum_of_squares(core))
    return Decomposition(left @ u[:, :most], values[:most], v[:most] @ right.t(), squares)


def product_squares(pair: Pair) -> float:
    """Return the sum of squares of ``b @ a`` without making it."""
    return float(sum_of_squares(_core((pair[0].double(), pair[1].double()))[1]))


def _core(pair: Pair) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``b @ a`` as orthonormal columns, a small matrix, and orthonormal columns again."""
    left, upper = torch.linalg.qr(pair[0])
    right, lower = torch.linalg.qr(pair[1].t())
    return left, upper @ lower.t(), right


def concatenated(pairs: Sequence[Pair]) -> Pair:
    """Return factors whose product is the sum of the pairs' products: ranks add up."""
    return torch.cat([b for b, _ in pairs], dim=1), torch.cat([a for _, a in pairs], dim=0)


def rank_of(found: Decomposition, spec: FactorSpec, shape: Sequence[int]) -> int:
    """Return how many singular values are kept; 0 of a matrix of zeros.

    Values that cannot be told from rounding errors of the largest one are not kept.

    Args:
        found: Of the matrix.
        spec: Its ``cut`` and ``energy``.
        shape: Of the matrix.
    """
    values = found.values.double().cpu()
    if not found.squares or not len(values) or not values[0]:
        return 0
    noise = float(values[0]) * max(shape) * torch.finfo(found.values.dtype).eps
    rank = int((values > max(noise, spec.cut or 0.0)).sum())
    if spec.energy is not None:
        shares = torch.cumsum(values[:rank] ** 2, dim=0) / found.squares
        rank = min(rank, int((shares < spec.energy - 1e-12).sum()) + 1)
    return rank


def balanced(found: Decomposition, rank: int, scale: float) -> Pair:
    """Return factors with ``scale * b @ a`` of that rank, each with the roots of the values.

    The sign of each pair of vectors is free: the largest element of each row of a is positive.
    """
    roots = (found.values[:rank] / scale).sqrt()
    right = found.right[:rank]
    if rank:
        largest = right.abs().argmax(dim=1, keepdim=True)
        signs = torch.where(right.gather(1, largest) < 0, -1.0, 1.0).to(right.dtype)[:, 0]
    else:
        signs = roots
    return found.left[:, :rank] * (roots * signs), right * (roots * signs)[:, None]


def sum_of_squares(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix's sum of squares, added up in float64 block by block."""
    total = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for rows in _blocks(len(matrix), matrix.shape[1]):
        total += matrix[rows].double().square().sum()
    return total


def squared_error(
    matrix: torch.Tensor | Pair, b: torch.Tensor, a: torch.Tensor, scale: float
) -> float:
    """Return the sum of squares of ``matrix - scale * b @ a``, in float64, by blocks of rows.

    Args:
        matrix: It, or two factors of it.
        b, a, scale: What it is compared with.
    """
    left, right = matrix if isinstance(matrix, tuple) else (matrix, None)
    wide, total = a.double(), torch.zeros((), dtype=torch.float64, device=a.device)
    for rows in _blocks(len(b), a.shape[1]):
        own = left[rows].double()
        own = own if right is None else own @ right.double()
        total += (own - scale * (b[rows].double() @ wide)).square().sum()
    return float(total)


def _blocks(count: int, width: int, elements: int = 1 << 22) -> Iterator[slice]:
    """Yield runs of rows that have about so many elements."""
    step = max(1, elements // max(1, width))
    for first in range(0, count, step):
        yield slice(first, first + step)


def _randomized(matrix: torch.Tensor, rank: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (matrix.shape[1], rank + OVERSAMPLING)
    sample = torch.randn(shape, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis, _ = torch.linalg.qr(matrix @ sample)
    for _ in range(POWERS):
        basis, _ = torch.linalg.qr(matrix.t() @ basis)
        basis, _ = torch.linalg.qr(matrix @ basis)
    left, values, right = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
    return basis @ left, values, right


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
