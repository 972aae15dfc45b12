"""Codes of one byte times a grid of scales: what FP8 and int8 formats have in common.

Element (r, c) of a matrix is ``(code - zero) * scale[r // h, c // w]`` for blocks of h x w; a
scale for all of the tensor is one block, one for each row is a block as high as 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from shardmerge.formats.boxes import at, matrix_rows
from shardmerge.formats.interface import Blocks, Box, LogicalTensor, PartRef, filled, misfit
from shardmerge.formats.shaped import Shaped

if TYPE_CHECKING:
    import numpy as np

#: Block heights and widths; 0 is all of the dimension.
BlockShape = tuple[int, int]
TENSOR: BlockShape = (0, 0)
CHANNEL: BlockShape = (1, 0)
#: One scale for every column, as fused experts that are stored transposed have it.
COLUMN: BlockShape = (0, 1)


def grid_shape(shape: tuple[int, ...], block: BlockShape) -> tuple[int, int]:
    """Return how many blocks a matrix has, down and across."""
    height, width = shape[-2:] if len(shape) > 1 else (1, shape[0])
    down = math.ceil(height / (block[0] or height or 1))
    across = math.ceil(width / (block[1] or width or 1))
    return down, across


def block_of(
    name: str, codes: PartRef, scales: PartRef, allowed: Iterable[BlockShape]
) -> BlockShape:
    """Return the first of the allowed blocks that a scale tensor's shape fits.

    Missing last dimensions of the scales count as 1, and a single number is for all.

    Raises:
        UserError: If it fits none.
    """
    filled(name, codes, scales)
    allowed = tuple(allowed)
    block = _fitting(codes.shape, scales.shape, allowed)
    if block is None:
        expected = (*codes.shape[:-2], *grid_shape(codes.shape, allowed[0]))
        raise misfit(name, scales, expected, f"{codes.tensor!r}")
    return block


@lru_cache(maxsize=1024)  # a model has many tensors of few shapes
def _fitting(
    codes: tuple[int, ...], scales: tuple[int, ...], allowed: tuple[BlockShape, ...]
) -> BlockShape | None:
    """Return the first block that the shapes fit; all matrices may share their scales."""
    if scales in ((), (1,)):
        return TENSOR
    lead = codes[:-2]
    shape = scales + (1,) * (max(2, len(codes)) - len(scales))
    for block in allowed:
        grid = grid_shape(codes, block)
        if shape in ((*lead, *grid), (*(1 for _ in lead), *grid)):
            return block
    return None


def scale_box(logical: LogicalTensor, scales: PartRef, first: int, count: int) -> Box:
    """Return what of a grid of scales a range of rows needs."""
    lead, begin, end = matrix_rows(logical, first, count)
    if scales.shape in ((), (1,)):
        return tuple((0, n) for n in scales.shape)
    height = logical.parameter("block")[0]
    box = [(n, n + 1) if size > 1 else (0, 1) for n, size in zip(lead, scales.shape, strict=False)]
    if len(scales.shape) > len(lead):
        down = scales.shape[len(lead)]
        box.append((begin // height, -(-end // height)) if height and down > 1 else (0, down))
    box += [(0, n) for n in scales.shape[len(lead) + 1 :]]
    return tuple(box)


def spread(logical: LogicalTensor, grid: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return what lies in a ``scale_box``, one value for every element [count, columns]."""
    import numpy as np

    _, begin, end = matrix_rows(logical, first, count)
    height, width = logical.parameter("block")
    down, across = grid_shape(logical.shape, (height, width))
    flat = grid.reshape(-1, across if grid.size > 1 else 1)
    one_row, one_column = down == 1 or len(flat) == 1, flat.shape[1] == 1
    rows = np.zeros(count, int) if one_row else np.arange(begin, end) // height - begin // height
    columns = np.zeros(logical.columns, int) if one_column else np.arange(logical.columns) // width
    return flat[rows][:, columns]


def scaled_rows(logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
    """Return the boxes of codes, scales and zeros (``Format.rows``)."""
    lead, begin, end = matrix_rows(logical, first, count)
    rows = ((begin, end),) if len(logical.shape) > 1 else ()
    boxes = {"codes": (*at(lead), *rows, (0, logical.columns))}
    for role in ("scales", "zeros"):
        if role in logical.parts:
            boxes[role] = scale_box(logical, logical.parts[role], first, count)
    return boxes


def scaled_decode(logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
    """Return rows as float32 (``Format.decode``)."""
    from shardmerge.formats.values import as_float32

    parts = logical.parts
    values = as_float32(blocks["codes"], parts["codes"].dtype).reshape(count, logical.columns)
    if "zeros" in parts:
        zeros = as_float32(blocks["zeros"], parts["zeros"].dtype)
        values = values - spread(logical, zeros, first, count)
    code = "F8_E8M0" if parts["scales"].dtype == "U8" else parts["scales"].dtype
    return values * spread(logical, as_float32(blocks["scales"], code), first, count)


class Scaled(Shaped):
    """``rows`` and ``decode`` of formats that are codes times a grid of scales."""

    def rows(self, logical: LogicalTensor, first: int, count: int) -> dict[str, Box]:
        """As ``Format.rows``."""
        return scaled_rows(logical, first, count)

    def decode(self, logical: LogicalTensor, blocks: Blocks, first: int, count: int) -> np.ndarray:
        """As ``Format.decode``."""
        return scaled_decode(logical, blocks, first, count)
