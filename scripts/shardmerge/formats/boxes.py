"""Which elements of stored tensors a range of a logical tensor's rows needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from shardmerge.formats.interface import Box, LogicalTensor, PartRef


def row_spans(logical: LogicalTensor, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield a range of rows cut where a matrix ends, as (first, count)."""
    height = max(1, logical.shape[-2] if len(logical.shape) > 1 else 1)
    last = first + count
    while first < last:
        end = min(last, (first // height + 1) * height)
        yield first, end - first
        first = end


def runs(shape: tuple[int, ...], box: Box) -> Iterator[tuple[int, int]]:
    """Yield the elements of a box as contiguous ranges (begin, end) of the flat stored tensor."""
    inner = 1
    split = len(shape)
    while split and box[split - 1] == (0, shape[split - 1]):
        split -= 1
        inner *= shape[split]
    if split == 0:
        if inner:
            yield 0, inner
        return
    begin, end = box[split - 1]
    outer = shape[: split - 1]
    for index in itertools.product(*(range(b - a) for a, b in box[: split - 1])):
        row = 0
        for size, (start, _), offset in zip(outer, box, index, strict=False):
            row = row * size + start + offset
        start = (row * shape[split - 1] + begin) * inner
        if end > begin and inner:
            yield start, start + (end - begin) * inner


def whole(part: PartRef) -> Box:
    """Return the box of all of a part."""
    return tuple((0, size) for size in part.shape)


def matrix_rows(logical: LogicalTensor, first: int, count: int) -> tuple[tuple[int, ...], int, int]:
    """Return (leading index, first row, row after the last) of rows within one matrix.

    Raises:
        ValueError: If the rows lie in more than one matrix, or outside the tensor.
    """
    height = logical.shape[-2] if len(logical.shape) > 1 else 1
    if count < 1 or first < 0 or first // height != (first + count - 1) // height:
        raise ValueError(f"rows {first} to {first + count} are not of one matrix")
    if first + count > logical.rows:
        raise ValueError(f"row {first + count} is outside {logical.shape}")
    number, start = divmod(first, height)
    lead = []
    for size in reversed(logical.shape[:-2]):
        number, index = divmod(number, size)
        lead.append(index)
    return tuple(reversed(lead)), start, start + count


def at(lead: Iterable[int]) -> Box:
    """Return the box of one leading index."""
    return tuple((n, n + 1) for n in lead)
