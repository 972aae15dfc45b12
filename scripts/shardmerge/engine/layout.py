"""The output file as a row of pieces, and its windows: what is read, copied and computed where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import file_leaves, is_copied, leaves, low_ranks, simplify
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import Numerics
from shardmerge.base.safetensors import write_header
from shardmerge.engine.inputs import Inputs, Location
from shardmerge.engine.memory import Tuning

#: Tensors in a window's input buffer start at multiples of this, for vector loads.
_ALIGN = 64


@dataclass(frozen=True)
class Piece:
    """A range of the output file that is made in one way.

    Args:
        begin, end: Range in the output file, in bytes.
        copy: Open file and offset that it is copied from, or None.
        tensor: Index of the output tensor that is computed, or None.
        itemsize: Bytes of one of its elements.
        leaves: Where the tensors that it is computed from lie.
        whole: Whether a method must see whole tensors for it.
    """

    begin: int
    end: int
    copy: tuple[int, int] | None = None
    tensor: int | None = None
    itemsize: int = 1
    leaves: tuple[Location, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Read:
    """A range of an open file, and where in a slot's output or input buffer it goes."""

    file: int
    offset: int
    length: int
    position: int
    verbatim: bool


@dataclass(frozen=True)
class Gather:
    """Elements of a leaf whose rows lie apart, and where in a slot's input buffer they go."""

    leaf: Location
    first: int
    count: int
    position: int


@dataclass(frozen=True)
class Part:
    """The part of a computed tensor that lies in a window.

    Args:
        tensor: Index of the output tensor.
        first, count: Its elements, all that have a byte in the window.
        skip: Bytes of the first element that lie before the window.
        begin, end: Range in the window, in bytes.
        leaves: (position in the input buffer, dtype code) of each leaf's elements.
        whole: Whether a method must see whole tensors for it.
    """

    tensor: int
    first: int
    count: int
    skip: int
    begin: int
    end: int
    leaves: tuple[tuple[int, str], ...]
    whole: bool


@dataclass(frozen=True)
class Window:
    """A range of the output file that is made at a time."""

    index: int
    offset: int
    length: int
    literal: bytes
    reads: tuple[Read, ...]
    gathers: tuple[Gather, ...]
    parts: tuple[Part, ...]
    arena: int


@dataclass(frozen=True)
class Layout:
    """The output file: its header, size and pieces in order.

    Args:
        header: First bytes of the file.
        size: Bytes of the file.
        pieces: All that follows the header, without gaps.
        twin: Number of the open file that the output equals byte for byte, or None.
    """

    header: bytes
    size: int
    pieces: tuple[Piece, ...]
    twin: int | None

    @property
    def computed(self) -> tuple[int, ...]:
        """Indices of the output tensors that are computed."""
        return tuple(piece.tensor for piece in self.pieces if piece.tensor is not None)

    def windows(self, length: int) -> Iterator[Window]:
        """Yield the windows of a length in bytes, in order."""
        first = 0
        for index, offset in enumerate(range(0, self.size, length)):
            end = min(offset + length, self.size)
            while first < len(self.pieces) and self.pieces[first].end <= offset:
                first += 1
            yield self._window(index, offset, end, first)

    def _window(self, index: int, begin: int, end: int, first: int) -> Window:
        reads: list[Read] = []
        gathers: list[Gather] = []
        parts: list[Part] = []
        arena = 0
        for piece in self.pieces[first:]:
            if piece.begin >= end:
                break
            low, high = max(piece.begin, begin), min(piece.end, end)
            if piece.copy is not None:
                file, offset = piece.copy
                reads.append(Read(file, offset + low - piece.begin, high - low, low - begin, True))
            else:
                part, arena = _part(piece, low, high, begin, arena, reads, gathers)
                parts.append(part)
        literal = self.header[begin:end]
        return Window(
            index, begin, end - begin, literal, tuple(reads), tuple(gathers), tuple(parts), arena
        )


def lay_out(spec: ShardSpec, inputs: Inputs) -> Layout:
    """Return the layout of a shard's file.

    Raises:
        UserError: If a tensor cannot be computed from what its expression names.
    """
    rows = [(t.name, t.dtype, t.shape) for t in spec.tensors]
    header = write_header(rows, spec.metadata or {"format": "pt"})
    pieces: list[Piece] = []
    position = len(header)
    for index, tensor in enumerate(spec.tensors):
        end = position + math.prod(tensor.shape) * DTYPES[tensor.dtype].size
        piece = _piece(index, tensor, position, end, spec.numerics, inputs)
        if end > position:
            _append(pieces, piece)
        position = end
    return Layout(header, position, tuple(pieces), _twin(header, position, pieces, inputs))


def choose_window(layout: Layout, tuning: Tuning) -> tuple[int, int]:
    """Return the bytes of a window and of its input buffer, as large as the memory allows."""
    for length in tuning.windows:
        arena = max((window.arena for window in layout.windows(length)), default=0)
        if tuning.slots * (length + arena) <= tuning.buffers:
            break
    return length, arena


def _piece(
    index: int, tensor: OutputTensor, begin: int, end: int, numerics: Numerics, inputs: Inputs
) -> Piece:
    expression = simplify(tensor.expression)
    count = math.prod(tensor.shape)
    if is_copied(expression, tensor.dtype, inputs.stored):
        _same_count(tensor, expression, count)
        location = inputs.locate(expression)
        return Piece(begin, end, copy=(location.file, location.begin))
    if count:
        _mergeable(tensor, inputs)
    files, calls = leaves(expression, inputs.stored, numerics)
    outside = () if calls else low_ranks(expression)  # a call's own inputs may have other shapes
    for part in (*files, *calls, *outside):
        _same_count(tensor, part, count)
    locations = tuple(inputs.locate(leaf) for leaf in files)
    return Piece(begin, end, None, index, DTYPES[tensor.dtype].size, locations, bool(calls))


def _mergeable(tensor: OutputTensor, inputs: Inputs) -> None:
    dtypes = [leaf.dtype for leaf in file_leaves(tensor.expression, inputs.stored)]
    for code in (tensor.dtype, *dtypes):
        if not DTYPES[code].floating:
            raise UserError(
                f"{DTYPES[code].name} values can only be copied as they are, not merged or "
                "converted",
                f"tensor {tensor.name!r}",
            )


def _same_count(tensor: OutputTensor, part: ex.Expression, count: int) -> None:
    if ex.elements(part) != count:
        raise UserError(
            f"has shape {list(tensor.shape)}, but is made from a tensor of {list(part.shape)}",
            f"tensor {tensor.name!r}",
        )


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece; a copy that goes on where the last one ends becomes part of it."""
    last = pieces[-1] if pieces else None
    if last and last.copy and piece.copy:
        file, offset = last.copy
        if piece.copy == (file, offset + last.end - last.begin):
            pieces[-1] = Piece(last.begin, piece.end, copy=last.copy)
            return
    pieces.append(piece)


def _twin(header: bytes, size: int, pieces: list[Piece], inputs: Inputs) -> int | None:
    """Return the open file that equals the output: same header, one copied range, same size."""
    if len(pieces) != 1 or pieces[0].copy is None:
        return None
    file, offset = pieces[0].copy
    if offset != len(header) or inputs.headers[file].size != offset or inputs.size(file) != size:
        return None
    start = bytearray(offset)
    inputs.read(file, 0, memoryview(start))
    return file if start == header else None


def _part(
    piece: Piece,
    low: int,
    high: int,
    window: int,
    arena: int,
    reads: list[Read],
    gathers: list[Gather],
) -> tuple[Part, int]:
    """Return a window's part of a computed piece, and the input buffer's new fill."""
    first = (low - piece.begin) // piece.itemsize
    last = -(-(high - piece.begin) // piece.itemsize)
    positions = []
    for leaf in piece.leaves:
        size = DTYPES[leaf.dtype].size
        length = (last - first) * size
        if leaf.table is None:
            reads.append(Read(leaf.file, leaf.begin + first * size, length, arena, False))
        else:
            gathers.append(Gather(leaf, first, last - first, arena))
        positions.append((arena, leaf.dtype))
        arena += -(-length // _ALIGN) * _ALIGN
    skip = low - piece.begin - first * piece.itemsize
    begin, end = low - window, high - window
    places = tuple(positions)
    part = Part(piece.tensor, first, last - first, skip, begin, end, places, piece.whole)
    return part, arena
