"""Deterministic passes over tensors in blocks.

A float32 kernel must give the same bits on any device and for any number of threads. So it uses
only operations that IEEE 754 rounds correctly (no fused multiply-add, whose use differs), sums in
a fixed order by halves, in float64, and takes other functions from ``elementary``. It keeps memory
small by passing over the inputs in tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from shardmerge.methods.contract import BLOCK

#: Returns tiles, one for each of some matrices of one shape, at (row slice, column slice).
Tiles = Callable[[slice, slice], Iterable[torch.Tensor]]


def spans(count: int, step: int = BLOCK) -> Iterator[slice]:
    """Yield slices of at most ``step`` that cover ``count`` elements in order."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def tiles(rows: int, columns: int, step: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Yield slices of tiles of at most ``step`` elements that cover a matrix in row-major order."""
    for row in spans(rows, max(1, step // max(columns, 1))):
        for column in spans(columns, step):
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


def row_sums(function: Tiles, rows: int, columns: int, step: int = BLOCK) -> torch.Tensor:
    """Return the sums over the rows of matrices that are computed tile by tile.

    Args:
        function: Yields k fresh tiles, one for each matrix, of float64 or what sums are made in.
        rows, columns: Shape of each matrix; both at least 1.
        step: Elements of a tile at most, a multiple of BLOCK; it changes no bit.

    Returns:
        Tensor [k, rows] on the CPU, of that type.
    """
    done: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    for row, column in tiles(rows, columns, step):
        parts.append(torch.stack([_block_sums(tile) for tile in function(row, column)]))
        if column.stop == columns:
            done.append(tree_sum(torch.cat(parts, dim=-1)).cpu())
            parts = []
    return torch.cat(done, dim=1)


def _block_sums(tile: torch.Tensor) -> torch.Tensor:
    """Return the sums over each BLOCK elements of a tile's rows, [rows, blocks]."""
    full = tile.shape[1] // BLOCK * BLOCK
    sums = [tree_sum(tile[:, :full].unflatten(1, (-1, BLOCK)))] if full else []
    if full < tile.shape[1]:
        sums.append(tree_sum(tile[:, full:])[:, None])
    return torch.cat(sums, dim=1)


def totals(function: Callable[[slice], Iterable[torch.Tensor]], count: int) -> list[float]:
    """Return the sums of vectors that are computed block by block.

    Args:
        function: Yields k fresh float64 blocks [elements] for a slice.
        count: Number of elements, at least 1.
    """
    sums = row_sums(lambda _, span: (x.reshape(1, -1) for x in function(span)), 1, count)
    return sums[:, 0].tolist()
