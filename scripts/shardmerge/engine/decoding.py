"""Decoded tensors, a range of elements at a time: which bytes are read, in pieces of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from shardmerge import formats
from shardmerge.algebra import expression as ex
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.formats.boxes import row_spans, runs
from shardmerge.formats.interface import Box, LogicalTensor, PartRef

if TYPE_CHECKING:
    import numpy as np

#: Elements that are decoded together, or a row if that has more.
_PIECE = 1 << 20
#: Bytes that all arrays of an element take while it is decoded.
_WORK = 64

#: A matrix of a stored tensor whose needed elements lie in more ranges is read whole and held.
_SCATTERED = 64

#: Returns the elements [begin, end) of a stored tensor, in numpy's type for them
#: (``formats.values.stored_type``).
ReadRange = Callable[[ex.Source, int, int], "np.ndarray"]
#: Matrices that are held: of each part the first element and the elements.
Held = dict[ex.Source, "tuple[int, np.ndarray]"]


def decode_elements(
    node: ex.Decoded, read: ReadRange, held: Held, first: int, count: int
) -> Iterator[np.ndarray]:
    """Yield consecutive elements of a decoded tensor, float32, piece by piece.

    Args:
        node: The tensor.
        read: Reads elements of its parts.
        held: What is kept of parts from one call to the next; the caller lets it go.
        first, count: Which elements, of the flattened tensor.

    Raises:
        UserError: If what is stored makes no sense.
    """
    logical, parts = _logical(node), dict(node.parts)
    last, columns = first + count, logical.columns
    for row, number in _rows(logical, first, count):
        blocks = _blocks(logical, parts, row, number, read, held)
        values = formats.decode(logical, blocks, row, number).reshape(-1)
        begin = row * columns
        yield values[max(0, first - begin) : last - begin]


def stored_ranges(node: ex.Decoded, first: int, count: int) -> Iterator[tuple[ex.Source, int, int]]:
    """Yield (part, first element, number of elements) of what elements are decoded from.

    What lies scattered is left out.
    """
    logical, parts = _logical(node), dict(node.parts)
    if formats.is_flat(logical):
        yield parts["codes"], first, count
        return
    for row, number in _rows(logical, first, count):
        for role, box in formats.rows(logical, row, number).items():
            if not _is_scattered(parts[role].shape, box):
                for begin, end in runs(parts[role].shape, box):
                    yield parts[role], begin, end - begin


def decoding_bytes(node: ex.Decoded) -> int:
    """Return the bytes of memory that it takes to decode a tensor.

    They do not depend on its size, but where rows of floats lie scattered in what is stored, a
    matrix of codes is held.
    """
    logical, parts = _logical(node), dict(node.parts)
    work = _WORK * min(ex.elements(node), max(_PIECE, logical.columns))
    if not ex.elements(node):
        return 0
    boxes = formats.rows(logical, 0, 1).items()
    scattered = [parts[role] for role, box in boxes if _is_scattered(parts[role].shape, box)]
    return work + sum(tensor_bytes(part.dtype, _matrix(part.shape)) for part in scattered)


def _blocks(
    logical: LogicalTensor,
    parts: Mapping[str, ex.Source],
    row: int,
    number: int,
    read: ReadRange,
    held: Held,
) -> dict[str, np.ndarray]:
    """Return what of every part a range of rows is decoded from."""
    if formats.is_flat(logical):
        begin, end = row * logical.columns, (row + number) * logical.columns
        return {"codes": read(parts["codes"], begin, end)}
    boxes = formats.rows(logical, row, number)
    return {role: _box(parts[role], box, read, held) for role, box in boxes.items()}


def _box(part: ex.Source, box: Box, read: ReadRange, held: Held) -> np.ndarray:
    """Return the elements of a stored tensor in a box."""
    import numpy as np

    shape = [end - begin for begin, end in box]
    if not _is_scattered(part.shape, box):
        found = [read(part, begin, end) for begin, end in runs(part.shape, box)]
        return np.concatenate(found).reshape(shape)
    matrix = _matrix(part.shape)
    inner = box[len(box) - len(matrix) :]
    size = math.prod(matrix)
    start = box[0][0] * size if len(matrix) < len(box) else 0
    found = held.get(part)  # another thread may let it go meanwhile
    if found is None or found[0] != start:
        held.pop(part, None)  # before another is read
        found = held[part] = start, read(part, start, start + size)
    return found[1].reshape(matrix)[tuple(slice(*ends) for ends in inner)].reshape(shape)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what is held at a time: of three dimensions on, under one first index."""
    return shape[1:] if len(shape) > 2 else shape


def _is_scattered(shape: tuple[int, ...], box: Box) -> bool:
    """Whether the elements of a box lie in many ranges of one matrix."""
    inner = len(shape)
    while inner and box[inner - 1] == (0, shape[inner - 1]):
        inner -= 1
    outer = box[: max(0, inner - 1)]
    alone = len(shape) <= 2 or box[0][1] - box[0][0] == 1
    return alone and math.prod(end - begin for begin, end in outer) > _SCATTERED


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
        whole = formats.is_flat(logical)
        yield from [(row, stop - row)] if whole else row_spans(logical, row, stop - row)
        row = stop
