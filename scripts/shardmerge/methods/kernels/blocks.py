"""Deterministic passes over tensors in blocks.

A float32 kernel must give the same bits on any device and for any number of threads. So it uses
only operations that IEEE 754 rounds correctly (no fused multiply-add, whose use differs), sums in
a fixed order by halves, in float64, and takes transcendental functions from ``functions``. It keeps
memory small by passing over the inputs in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from shardmerge.methods.contract import BLOCK

#: Returns tiles, one for each of some matrices of one shape, at (row slice, column slice).
Tiles = Callable[[slice, slice], Iterable[torch.Tensor]]
#: A number, or one for each row as a float64 tensor on the CPU.
Coefficient = float | torch.Tensor


def spans(count: int, step: int = BLOCK) -> Iterator[slice]:
    """Yield slices of at most ``step`` that cover ``count`` elements in order."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of tiles of at most BLOCK elements that cover a matrix in row-major order."""
    for row in spans(rows, max(1, BLOCK // max(columns, 1))):
        for column in spans(columns):
            yield row, column


def tree_sum(x: torch.Tensor) -> torch.Tensor:
    """Return the sum over the last dimension, by halves in a fixed order; overwrites ``x``."""
    count = x.shape[-1]
    if count == 0:
        return x.new_zeros(x.shape[:-1])
    while count > 1:
        half = count // 2
        x[..., :half] += x[..., count - half : count]
        count -= half
    return x[..., 0].clone()


def row_sums(function: Tiles, rows: int, columns: int) -> torch.Tensor:
    """Return the sums over the rows of matrices that are computed tile by tile.

    Args:
        function: Yields k fresh float64 tiles, one for each matrix.
        rows, columns: Shape of each matrix; both at least 1.

    Returns:
        float64 tensor [k, rows] on the CPU.
    """
    done: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    for row, column in tiles(rows, columns):
        parts.append(torch.stack([tree_sum(tile) for tile in function(row, column)]))
        if column.stop == columns:
            done.append(tree_sum(torch.stack(parts, dim=-1)).cpu())
            parts = []
    return torch.cat(done, dim=1)


def totals(function: Callable[[slice], Iterable[torch.Tensor]], count: int) -> list[float]:
    """Return the sums of vectors that are computed block by block.

    Args:
        function: Yields k fresh float64 blocks [elements] for a slice.
        count: Number of elements, at least 1.
    """
    sums = row_sums(lambda _, span: (x.reshape(1, -1) for x in function(span)), 1, count)
    return sums[:, 0].tolist()


def gram(function: Tiles, rows: int, columns: int) -> torch.Tensor:
    """Return the dot products of the rows of matrices, each with each.

    Args:
        function: Returns n tiles, one for each matrix.
        rows, columns: Shape of each matrix; both at least 1.

    Returns:
        float64 tensor [n, n, rows] on the CPU.
    """

    def products(row: slice, column: slice) -> Iterator[torch.Tensor]:
        wide = [tile.double() for tile in function(row, column)]
        for i, left in enumerate(wide):
            for right in wide[i:]:
                yield left * right

    sums = row_sums(products, rows, columns)
    size = int((2 * len(sums)) ** 0.5)
    result = sums.new_empty(size, size, rows)
    upper = torch.triu_indices(size, size)
    result[upper[0], upper[1]] = sums
    result[upper[1], upper[0]] = sums
    return result


def combine(
    matrices: Sequence[torch.Tensor],
    coefficients: Sequence[Coefficient],
    out: torch.Tensor,
    origin: torch.Tensor | None = None,
) -> None:
    """Write a linear combination of matrices into ``out``.

    Args:
        matrices: Of shape [rows, columns] and the dtype of ``out``.
        coefficients: One for each matrix.
        out: The result, [rows, columns].
        origin: If given, its difference from each matrix is combined, and it is added at last.
    """
    for row, column in tiles(*out.shape):
        part = torch.zeros_like(out[row, column])
        for coefficient, matrix in zip(coefficients, matrices, strict=True):
            if isinstance(coefficient, float) and coefficient == 0:
                continue  # 0 * inf is not 0
            tile = matrix[row, column]
            if origin is not None:
                tile = tile - origin[row, column]
            if isinstance(coefficient, torch.Tensor):
                coefficient = coefficient[row, None].to(out.device, out.dtype)
            part += tile * coefficient
        out[row, column] = part if origin is None else part.add_(origin[row, column])
