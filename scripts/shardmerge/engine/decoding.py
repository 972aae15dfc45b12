"""Decoded tensors, a range of elements at a time: which bytes are read, in pieces of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from shardmerge import formats
from shardmerge.algebra import expression as ex
from shardmerge.formats.interface import Box, LogicalTensor, PartRef, row_spans, runs

if TYPE_CHECKING:
    import numpy as np

#: Elements that are decoded together, or a row if that has more.
_PIECE = 1 << 20
#: Bytes that all arrays of an element take while it is decoded.
_WORK = 64

#: Returns elements of a stored tensor, the ranges [begin, end) one after the other, in numpy's
#: type for them (``formats.values.stored_type``).
ReadRanges = Callable[[ex.Source, Sequence[tuple[int, int]]], "np.ndarray"]


def decode_elements(
    node: ex.Decoded, read: ReadRanges, first: int, count: int
) -> Iterator[np.ndarray]:
    """Yield consecutive elements of a decoded tensor, float32, piece by piece.

    Args:
        node: The tensor.
        read: Reads elements of its parts.
        first, count: Which elements, of the flattened tensor.

    Raises:
        UserError: If what is stored makes no sense.
    """
    logical, parts = _logical(node), dict(node.parts)
    last, columns = first + count, logical.columns
    for row, number in _rows(logical, first, count):
        blocks = {
            role: read(parts[role], list(runs(parts[role].shape, box))).reshape(
                [end - begin for begin, end in box]
            )
            for role, box in formats.rows(logical, row, number).items()
        }
        values = formats.decode(logical, blocks, row, number).reshape(-1)
        begin = row * columns
        yield values[max(0, first - begin) : last - begin]


def stored_ranges(node: ex.Decoded, first: int, count: int) -> Iterator[tuple[ex.Source, int, int]]:
    """Yield (part, first element, number of elements) of all that elements are decoded from."""
    logical, parts = _logical(node), dict(node.parts)
    for row, number in _rows(logical, first, count):
        boxes: dict[str, Box] = formats.rows(logical, row, number)
        for role, box in boxes.items():
            for begin, end in runs(parts[role].shape, box):
                yield parts[role], begin, end - begin


def decoding_bytes(node: ex.Decoded) -> int:
    """Return the bytes of memory that it takes to decode a tensor, whatever its size."""
    return _WORK * min(ex.elements(node), max(_PIECE, node.shape[-1]))


def _logical(node: ex.Decoded) -> LogicalTensor:
    parts = {role: PartRef(one.tensor, one.dtype, one.shape) for role, one in node.parts}
    return LogicalTensor(
        node.tensor, node.shape, node.format, parts, node.parameters, step=node.step
    )


def _rows(logical: LogicalTensor, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the rows that elements lie in, as (first row, number of rows)."""
    if not count:
        return
    height = max(1, _PIECE // logical.columns)
    height -= height % logical.step if height > logical.step else 0
    row, end = first // logical.columns, -(-(first + count) // logical.columns)
    while row < end:
        stop = min(end, (row // height + 1) * height)
        yield from row_spans(logical, row, stop - row)
        row = stop
