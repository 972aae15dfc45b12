"""The output file as segments in a row, and its windows: what is read and computed where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.safetensors import write_header
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.locations import AnyLocation
from shardmerge.engine.memory import Tuning
from shardmerge.engine.tasks import TensorTask

#: Tensors in a window's input buffer start at multiples of this, for vector loads.
_ALIGN = 64


@dataclass(frozen=True)
class Segment:
    """A range of the output file that is made in one way.

    Args:
        begin, end: Range in the output file, in bytes.
        copy: Open file and offset that it is copied from, or None.
        tensor: Index of the output tensor that is computed, or None.
        itemsize: Bytes of one of its elements.
        leaves: Where the tensors that it is computed from lie.
    """

    begin: int
    end: int
    copy: tuple[int, int] | None = None
    tensor: int | None = None
    itemsize: int = 1
    leaves: tuple[AnyLocation, ...] = ()


@dataclass(frozen=True)
class Copy:
    """A range of an open file, and where in a slot's output buffer it goes."""

    file: int
    offset: int
    length: int
    position: int


@dataclass(frozen=True)
class LeafRead:
    """Elements of a leaf, and where in a slot's input buffer they go."""

    leaf: AnyLocation
    first: int
    count: int
    position: int


@dataclass(frozen=True)
class Chunk:
    """The part of a computed tensor that lies in a window.

    Args:
        tensor: Index of the output tensor.
        first, count: Its elements, all that have a byte in the window.
        itemsize: Bytes of an element.
        skip: Bytes of the first element that lie before the window.
        begin, end: Range in the window, in bytes.
        leaves: (position in the input buffer, dtype code) of each leaf's elements.
    """

    tensor: int
    first: int
    count: int
    itemsize: int
    skip: int
    begin: int
    end: int
    leaves: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Window:
    """A range of the output file that is made at a time.

    Args:
        index: Its number.
        offset, length: Range in the output file, in bytes.
        literal: Bytes of the header that lie in it; they come first.
        copies: What is read into its output buffer.
        reads: What is read into its input buffer.
        chunks: What is computed from that.
        arena: Bytes of the input buffer.
    """

    index: int
    offset: int
    length: int
    literal: bytes
    copies: tuple[Copy, ...]
    reads: tuple[LeafRead, ...]
    chunks: tuple[Chunk, ...]
    arena: int


@dataclass(frozen=True)
class Layout:
    """The output file: its header, size and segments in order.

    Args:
        header: First bytes of the file.
        size: Bytes of the file.
        segments: All that follows the header, without gaps.
        twin: Number of the open file that the output equals byte for byte, or None.
    """

    header: bytes
    size: int
    segments: tuple[Segment, ...]
    twin: int | None

    @property
    def computed(self) -> tuple[int, ...]:
        """Indices of the output tensors that are computed."""
        return tuple(segment.tensor for segment in self.segments if segment.tensor is not None)

    def windows(self, length: int) -> Iterator[Window]:
        """Yield the windows of a length in bytes, in order."""
        first = 0
        for index, offset in enumerate(range(0, self.size, length)):
            end = min(offset + length, self.size)
            while first < len(self.segments) and self.segments[first].end <= offset:
                first += 1
            yield self._window(index, offset, end, first)

    def _window(self, index: int, begin: int, end: int, first: int) -> Window:
        copies: list[Copy] = []
        reads: list[LeafRead] = []
        chunks: list[Chunk] = []
        arena = 0
        for segment in self.segments[first:]:
            if segment.begin >= end:
                break
            low, high = max(segment.begin, begin), min(segment.end, end)
            if segment.copy is not None:
                file, offset = segment.copy
                copies.append(Copy(file, offset + low - segment.begin, high - low, low - begin))
            else:
                chunk, more, arena = _chunk(segment, low, high, begin, arena)
                chunks.append(chunk)
                reads += more
        literal, ranges = self.header[begin:end], (tuple(copies), tuple(reads))
        return Window(index, begin, end - begin, literal, *ranges, tuple(chunks), arena)


def lay_out(spec: ShardSpec, tasks: Sequence[TensorTask], files: InputFiles) -> Layout:
    """Return the layout of a shard's file.

    Args:
        spec: The shard.
        tasks: Of its tensors.
        files: That they are read from.

    Raises:
        UserError: If a tensor cannot be computed from what its expression names.
    """
    rows = [(t.name, t.dtype, t.shape) for t in spec.tensors]
    header = write_header(rows, spec.metadata or {"format": "pt"})
    segments: list[Segment] = []
    position = len(header)
    for index, task in enumerate(tasks):
        end = position + math.prod(task.tensor.shape) * DTYPES[task.tensor.dtype].size
        segment = _segment(index, task, position, end, files)
        if end > position:
            _append(segments, segment)
        position = end
    return Layout(header, position, tuple(segments), _twin(header, position, segments, files))


def choose_windows(layout: Layout, tuning: Tuning) -> tuple[int, int, list[Window]]:
    """Return bytes of a window and of its input buffer, and all windows, as large as memory allows.

    A length is given up at the first window that does not fit, unless there is no shorter one.
    """
    for length in tuning.windows:
        most = tuning.buffers // tuning.slots - length
        arena = 0
        windows: list[Window] = []
        for window in layout.windows(length):
            arena = max(arena, window.arena)
            windows.append(window)
            if arena > most and length != tuning.windows[-1]:
                break
        else:
            if arena <= most:
                break
    return length, arena, windows


def _segment(index: int, task: TensorTask, begin: int, end: int, files: InputFiles) -> Segment:
    tensor, leaves, count = task.tensor, task.leaves, math.prod(task.tensor.shape)
    if task.kind == "copy":
        _same_count(tensor, task.expression, count)
        location = files.locate(task.expression)
        return Segment(begin, end, copy=(location.file, location.begin))
    if count:
        _mergeable(task)
    # what rows are taken of may have other shapes, and so may a call's own inputs
    near = ex.walk(task.expression, lambda part: isinstance(part, ex.Rows))
    outside = [] if leaves.held else [part for part in near if isinstance(part, ex.LowRank)]
    for part in (*leaves.files, *leaves.held, *outside):
        _same_count(tensor, part, count)
    locations = tuple(files.locate(leaf) for leaf in leaves.files)
    return Segment(begin, end, None, index, DTYPES[tensor.dtype].size, locations)


def _mergeable(task: TensorTask) -> None:
    tables = {node.rows for node in ex.walk(task.expression) if isinstance(node, ex.RowSums)}
    read = (leaf.dtype for leaf in task.reads if leaf not in tables)
    for code in (task.tensor.dtype, *read):
        if not DTYPES[code].floating:
            raise UserError(
                f"{DTYPES[code].name} values can only be copied as they are, not merged or "
                "converted",
                f"tensor {task.tensor.name!r}",
            )


def _same_count(tensor: OutputTensor, part: ex.Expression, count: int) -> None:
    if ex.elements(part) != count:
        raise UserError(
            f"has shape {list(tensor.shape)}, but is made from a tensor of {list(part.shape)}",
            f"tensor {tensor.name!r}",
        )


def _append(segments: list[Segment], segment: Segment) -> None:
    """Add a segment; a copy that goes on where the last one ends becomes part of it."""
    last = segments[-1] if segments else None
    if last and last.copy and segment.copy:
        file, offset = last.copy
        if segment.copy == (file, offset + last.end - last.begin):
            segments[-1] = Segment(last.begin, segment.end, copy=last.copy)
            return
    segments.append(segment)


def _twin(header: bytes, size: int, segments: list[Segment], files: InputFiles) -> int | None:
    """Return the open file that equals the output: same header, one copied range, same size."""
    if len(segments) != 1 or segments[0].copy is None:
        return None
    file, offset = segments[0].copy
    if offset != len(header) or files.headers[file].size != offset or files.size(file) != size:
        return None
    start = bytearray(offset)
    files.read(file, 0, memoryview(start))
    return file if start == header else None


def _chunk(
    segment: Segment, low: int, high: int, window: int, arena: int
) -> tuple[Chunk, list[LeafRead], int]:
    """Return a window's part of a computed segment, its reads, and the input buffer's new fill."""
    first = (low - segment.begin) // segment.itemsize
    count = -(-(high - segment.begin) // segment.itemsize) - first
    reads = []
    for leaf in segment.leaves:
        reads.append(LeafRead(leaf, first, count, arena))
        arena += -(-count * DTYPES[leaf.dtype].size // _ALIGN) * _ALIGN
    chunk = Chunk(
        segment.tensor,
        first,
        count,
        segment.itemsize,
        low - segment.begin - first * segment.itemsize,
        low - window,
        high - window,
        tuple((read.position, read.leaf.dtype) for read in reads),
    )
    return chunk, reads, arena
