"""Rows of other tokens by a rotation that brings a donor's rows of shared tokens to a model's.

Both are centred and brought to their principal axes, as many as the narrower of the two has. The
rotation is that of least squares: Schoenemann 1966, "A generalized solution of the orthogonal
Procrustes problem", https://doi.org/10.1007/BF02289451.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shardmerge.algebra.rows import expand_rows
from shardmerge.algebra.transplant import MADE, TransplantSpec
from shardmerge.base.errors import UserError
from shardmerge.engine.transplant import read_rows

#: Axes along which points vary less than this, relative to the first, are none.
_FLAT = 1e-7
#: Rows that are turned at a time.
_AT_ONCE = 4096


@dataclass(frozen=True)
class TurnedRows:
    """Rows that a donor's rows become.

    Args:
        rows: float32 [count, width].
        error: How far the donor's rows of shared tokens, so turned, are from the model's, relative
            to how these vary.
    """

    rows: torch.Tensor
    error: float

    @property
    def told(self) -> str:
        """What is said of them in a log."""
        return f"{len(self.rows)} rows; shared tokens are missed by a relative {self.error:.3g}"

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written."""
        return {MADE: self.rows}


def turned(
    spec: TransplantSpec, files: Sequence[Path], *, threads: int = 1, device: str = "cpu"
) -> TurnedRows:
    """Return the rows that a donor's rows become; computed in float64.

    Args:
        spec: Says which rows, of which tensors.
        files: That the donor's embedding lies in, and the model's.
        threads: Of torch.
        device: torch's name of where it is computed.

    Raises:
        UserError: If a file is not as the plan has it, or holds values that are not finite.
    """
    torch.set_num_threads(threads)
    points = read_rows(spec.donor, files[0], expand_rows(spec.donor.shared)).to(device)
    own = read_rows(spec.table, files[1], expand_rows(spec.own)).to(device)
    targets = read_rows(spec.donor, files[0], expand_rows(spec.donor.targets)).to(device)
    for values, file in ((points, files[0]), (targets, files[0]), (own, files[1])):
        if not bool(values.isfinite().all()):
            raise UserError("the embedding has infinite or NaN values", str(file))
    here, there = _centre(points), _centre(own)
    turn = _turn(points, own, here, there)
    missed, all_of_it = 0.0, 0.0
    for (_, point), (_, row) in zip(_bands(points, here), _bands(own, there), strict=True):
        missed += float((point @ turn - row).square().sum())
        all_of_it += float(row.square().sum())
    made = torch.empty(spec.count, own.shape[1])
    for begin, target in _bands(targets, here):
        made[begin : begin + len(target)] = (target @ turn + there).mul_(spec.scale).cpu()
    return TurnedRows(made, (missed / all_of_it) ** 0.5 if all_of_it else 0.0)


def _bands(rows: torch.Tensor, centre: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, rows less a centre in float64), a few rows at a time."""
    for begin in range(0, len(rows), _AT_ONCE):
        yield begin, rows[begin : begin + _AT_ONCE].double() - centre


def _centre(rows: torch.Tensor) -> torch.Tensor:
    nothing = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    return sum((band.sum(dim=0) for _, band in _bands(rows, nothing)), nothing) / len(rows)


def _turn(
    points: torch.Tensor, own: torch.Tensor, here: torch.Tensor, there: torch.Tensor
) -> torch.Tensor:
    """Return the matrix that turns points about their centre to others, [width, other width]."""
    most = min(points.shape[1], own.shape[1])
    axes, others = _axes(points, here, most), _axes(own, there, most)
    pairs = zip(_bands(points, here), _bands(own, there), strict=True)
    shared = sum((a @ axes).T @ (b @ others) for (_, a), (_, b) in pairs)
    left, _, right = torch.linalg.svd(shared, full_matrices=False)
    return axes @ (left @ right) @ others.T


def _axes(points: torch.Tensor, centre: torch.Tensor, most: int) -> torch.Tensor:
    """Return principal axes of points as columns, those of the largest variance first."""
    variances, axes = torch.linalg.eigh(sum(band.T @ band for _, band in _bands(points, centre)))
    kept = variances > _FLAT**2 * variances[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return axes[:, kept].flip(1)[:, :most]
