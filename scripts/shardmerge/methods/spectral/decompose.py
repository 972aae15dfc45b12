"""Singular value decompositions in float64, with bounds of what a library may do otherwise.

A library's singular values are those of a matrix within ``n * u * s_1`` of the given one (n the
larger dimension, s_1 the largest singular value, u the unit roundoff; LAPACK Users' Guide, section
4.9). Singular subspaces turn by at most that over the gap to the next singular value (Wedin 1972),
and the orthonormal factor of a matrix changes by at most a few times the change over its smallest
singular value (Li 1995). The bounds here have factors to spare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from shardmerge.base.errors import UserError

if TYPE_CHECKING:
    from shardmerge.methods.spectral.notes import Notes

_UNIT = 2.0**-52


@dataclass(frozen=True)
class Factors:
    """The first singular vectors of a matrix.

    Args:
        left: float64 [rows, k], orthonormal columns.
        values: float64 [k], descending, none of them 0.
        right: float64 [columns, k], orthonormal columns.
        noise: Bound on the distance (Frobenius norm) of the matrix that is decomposed in truth.
        turn: Bound on the distance of ``left`` and of ``right`` from those of another library, once
            rotations among the columns are undone.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    noise: float
    turn: float


def singular_vectors(
    matrix: torch.Tensor,
    error: float = 0.0,
    keep: int | None = None,
    scale: float = 0.0,
    notes: Notes | None = None,
) -> Factors:
    """Return the singular vectors of a matrix whose singular values are not 0.

    Args:
        matrix: float64 [rows, columns], finite.
        error: Bound on the distance (Frobenius norm) from the matrix that is meant.
        keep: How many at most; None for all.
        scale: Norm of what the matrix is a difference of: what is 0 beside it counts as 0.
        notes: Takes what is found.
    """
    left, values, right = _svd(matrix)
    if notes:
        notes.spectrum(left, values, right)
    return _first(matrix, left, values, right, error, keep, scale)


def _first(
    matrix: torch.Tensor,
    left: torch.Tensor,
    values: torch.Tensor,
    right: torch.Tensor,
    error: float,
    keep: int | None = None,
    scale: float = 0.0,
) -> Factors:
    """Return the first of all singular vectors."""
    largest = float(values[0]) if len(values) else 0.0
    zero = max(matrix.shape) * _UNIT * max(largest, scale)
    kept = int((values > zero).sum())
    kept = kept if keep is None else min(keep, kept)
    noise = error + math.sqrt(len(values)) * zero
    following = float(values[kept]) if kept < len(values) else 0.0
    turn = _ratio(2 * math.sqrt(2 * kept) * noise, float(values[kept - 1]) - following, kept)
    return Factors(left[:, :kept], values[:kept], right[:, :kept], noise, turn)


def orthonormal(
    columns: torch.Tensor, error: float, notes: Notes | None = None, side: str = "left"
) -> tuple[torch.Tensor, float]:
    """Return the nearest matrix with orthonormal columns, and a bound on its error.

    Where columns depend on each other, it has the same null space as they.

    Args:
        columns: float64 [rows, k], k at most rows.
        error: Bound on their distance from the columns that are meant.
        notes: Takes what is found.
        side: Of the singular vectors that the columns are, for the notes.
    """
    if not columns.numel():
        return columns, 0.0
    left, values, right = _svd(columns)
    found = _first(columns, left, values, right, error)
    made = found.left @ found.right.t()
    if notes:
        notes.nearest(left, values, made, side)
    return made, _ratio(4 * found.noise, float(found.values[-1]), len(found.values))


def _svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise UserError(
            f"the singular values of a matrix {list(matrix.shape)} cannot be found ({error})",
            hint="Set `decompose` to false for this tensor, with a filter.",
        ) from None
    return left, values, right.t()


def _ratio(above: float, below: float, count: int) -> float:
    """Return a bound that is a quotient: 0 of nothing, infinite where there is no gap."""
    if not count:
        return 0.0
    return above / below if below > 0 else math.inf
