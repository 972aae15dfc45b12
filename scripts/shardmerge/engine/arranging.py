"""Arranged tensors, a range of elements at a time: what is read of each operand, and where it goes.

Boxes whose elements keep their order are read run by run. Of what is transposed a band is read,
turned and held, so that each element is read once and memory stays flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.algebra.pieces import NONE, Patch, steps
from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.decoding import decoding_bytes

if TYPE_CHECKING:
    import numpy as np

#: Bytes of a band of a transposed matrix; one of a decoded matrix has all that is needed of it.
_BAND = 16 << 20

#: Fills an array with the elements [begin, begin + len) of an operand, in numpy's type for them
#: (``formats.values.stored_type``).
ReadInto = Callable[[ex.Source | ex.Decoded, int, "np.ndarray"], None]
#: The band that is held: which one, and its elements in the result's order.
Band = dict[tuple[int, tuple[int, ...]], "np.ndarray"]


class _Run(NamedTuple):
    """Consecutive elements of the result that are consecutive in an operand too."""

    place: int
    source: int
    length: int


class _Axis(NamedTuple):
    """An axis of a box: its length, and what a step along it is in the result and the operand."""

    length: int
    step: int
    source: int


def fill_elements(
    node: ex.Arranged, read: ReadInto, held: Band, first: int, target: np.ndarray
) -> None:
    """Fill an array with consecutive elements of an arranged tensor.

    Args:
        node: The tensor.
        read: Reads elements of its operands.
        held: What is kept from one call to the next; the caller lets it go.
        first: The first element, of the flattened tensor.
        target: In numpy's type for the tensor's.
    """
    last = first + len(target)
    if not node.is_full:
        target[:] = 0
    for number in _within(node, first, last):
        piece = node.pieces[number]
        if _is_turned(node, piece):
            _fill_turned(node, number, read, held, first, target)
            continue
        for run in _runs(node, piece, first, last):
            part = target[run.place - first : run.place - first + run.length]
            _read(piece.operand, read, run.source, part, node.dtype)


def arranged_ranges(
    node: ex.Arranged, first: int, count: int
) -> Iterator[tuple[ex.Source | ex.Decoded, int, int]]:
    """Yield (operand, first element, number of elements) that elements are read from.

    What is transposed is left out.
    """
    for number in _within(node, first, first + count):
        piece = node.pieces[number]
        if not _is_turned(node, piece):
            for run in _runs(node, piece, first, first + count):
                yield piece.operand, run.source, run.length


def arranging_bytes(node: ex.Arranged) -> int:
    """Return the bytes of memory that it takes to read an arranged tensor."""
    operands = ex.operands(node)
    decoding = max(
        (decoding_bytes(one) for one in operands if isinstance(one, ex.Decoded)), default=0
    )
    turned = (piece for piece in node.pieces if _is_turned(node, piece))
    return decoding + max((3 * _band_bytes(piece) for piece in turned), default=0)


def _is_turned(node: ex.Arranged, piece: Patch) -> bool:
    """Whether columns of an operand's matrix are rows of the result, which are read in bands."""
    return piece.turned and steps(node.shape)[piece.axes[-2]] == 1


def _band_bytes(piece: Patch) -> int:
    size, matrix = DTYPES[piece.operand.dtype].size, math.prod(piece.sizes[-2:])
    if isinstance(piece.operand, ex.Decoded):
        # rows are decoded whole
        return size * max(matrix, piece.sizes[-2] * piece.operand.shape[-1])
    return min(size * matrix, max(_BAND, size * piece.sizes[-2]))


def _within(node: ex.Arranged, first: int, last: int) -> Iterator[int]:
    """Yield the numbers of the pieces that have elements in a range."""
    for number, (begin, end) in enumerate(node.spans):
        if begin < last and end > first:
            yield number


def _axes(node: ex.Arranged, piece: Patch) -> list[_Axis]:
    """Return the axes of a piece's box, in the result's order."""
    source, along = steps(piece.operand.shape), steps(node.shape)
    own = {axis: step for axis, step in zip(piece.axes, source, strict=True) if axis != NONE}
    return [_Axis(n, along[a], own.get(a, 0)) for a, n in enumerate(piece.extents)]


def _start(piece: Patch) -> int:
    """Return the first element of an operand that a piece has."""
    along = steps(piece.operand.shape)
    return sum(b * s for b, s in zip(piece.begin, along, strict=True))


def _runs(node: ex.Arranged, piece: Patch, first: int, last: int) -> Iterator[_Run]:
    """Yield the runs of a piece whose elements keep their order, cut to a range."""
    axes, length = _axes(node, piece), 1
    while axes and (axes[-1].length == 1 or axes[-1].step == axes[-1].source == length):
        length *= axes.pop().length
    place = sum(a * s for a, s in zip(piece.at, steps(node.shape), strict=True))
    yield from _walk(axes, length, place, _start(piece), first, last)


def _walk(
    axes: Sequence[_Axis], length: int, place: int, source: int, first: int, last: int
) -> Iterator[_Run]:
    if not axes:
        begin, end = max(place, first), min(place + length, last)
        if begin < end:
            yield _Run(begin, source + begin - place, end - begin)
        return
    axis, *inner = axes
    span = sum((one.length - 1) * one.step for one in inner) + length
    low = max(0, -(-(first - span + 1 - place) // axis.step))
    high = min(axis.length, -(-(last - place) // axis.step))
    for index in range(low, high):
        here = place + index * axis.step, source + index * axis.source
        yield from _walk(inner, length, *here, first, last)


def _fill_turned(
    node: ex.Arranged, number: int, read: ReadInto, held: Band, first: int, target: np.ndarray
) -> None:
    """Fill in what a transposed piece has of a range: its rows are columns of the operand."""
    piece, last = node.pieces[number], first + len(target)
    axes = _axes(node, piece)
    # the operand's last two axes are exchanged, whatever stands before them keeps its order
    row, column = piece.axes[-1], piece.axes[-2]
    outer = [axis for i, axis in enumerate(axes) if i not in (row, column)]
    place = sum(a * s for a, s in zip(piece.at, steps(node.shape), strict=True))
    width, step = axes[column].length, axes[row].step
    span = (axes[row].length - 1) * step + width
    for matrix, source in _matrices(outer, place, _start(piece)):
        if matrix >= last or matrix + span <= first:
            continue
        low = max(0, -(-(first - width + 1 - matrix) // step))
        high = min(axes[row].length, -(-(last - matrix) // step))
        for index in range(low, high):
            values = _turned_row(piece, number, source, index, read, held)
            begin = matrix + index * step
            cut = slice(max(0, first - begin), min(width, last - begin))
            target[begin + cut.start - first : begin + cut.stop - first] = _as(
                values[cut], piece.operand.dtype, node.dtype
            )


def _matrices(axes: Sequence[_Axis], place: int, source: int) -> Iterator[tuple[int, int]]:
    if not axes:
        yield place, source
        return
    axis, *inner = axes
    for index in range(axis.length):
        yield from _matrices(inner, place + index * axis.step, source + index * axis.source)


def _turned_row(
    piece: Patch, number: int, source: int, index: int, read: ReadInto, held: Band
) -> np.ndarray:
    """Return a row of a transposed piece, out of the band that it lies in."""
    height = _band_rows(piece)
    key = number, (source, index // height)
    found = held.get(key)  # another thread may let it go meanwhile
    if found is None:
        held.clear()  # before another is read
        found = held[key] = _band(piece, source, index // height * height, height, read)
    return found[index % height]


def _band_rows(piece: Patch) -> int:
    """Return how many columns of an operand are read together."""
    count, columns = piece.sizes[-2:]
    if isinstance(piece.operand, ex.Decoded):
        return columns
    return min(columns, max(1, _BAND // (count * DTYPES[piece.operand.dtype].size)))


def _band(piece: Patch, source: int, first: int, height: int, read: ReadInto) -> np.ndarray:
    """Return columns of an operand's matrix as rows."""
    import numpy as np

    from shardmerge.formats.values import stored_type

    operand, (count, columns) = piece.operand, piece.sizes[-2:]
    width, height = operand.shape[-1], min(height, columns - first)
    dtype = stored_type(operand.dtype)
    if isinstance(operand, ex.Decoded) or height == width:
        begin = source - source % width
        rows = np.empty((count, width), dtype)
        read(operand, begin, rows.reshape(-1))
        part = rows[:, source - begin + first : source - begin + first + height]
    else:
        part = np.empty((count, height), dtype)
        for number, row in enumerate(part):
            read(operand, source + number * width + first, row)
    return np.ascontiguousarray(part.T)


def _read(
    operand: ex.Source | ex.Decoded, read: ReadInto, begin: int, target: np.ndarray, dtype: str
) -> None:
    """Fill an array with elements of an operand, in a type that holds them exactly."""
    import numpy as np

    from shardmerge.formats.values import stored_type

    if operand.dtype == dtype:
        read(operand, begin, target)
        return
    for first in range(0, len(target), 1 << 20):
        part = target[first : first + (1 << 20)]
        stored = np.empty(len(part), stored_type(operand.dtype))
        read(operand, begin + first, stored)
        part[:] = _as(stored, operand.dtype, dtype)


def _as(values: np.ndarray, have: str, want: str) -> np.ndarray:
    import numpy as np

    if have == want or have != "BF16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)
