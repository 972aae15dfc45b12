"""How the elements of each kind of leaf are read from files: the one place that knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf
from shardmerge.algebra.rows import row_ranges
from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.arranging import Band, arranged_ranges, fill_elements
from shardmerge.engine.decoding import Held, decode_elements, stored_ranges

if TYPE_CHECKING:
    import numpy as np

#: Fills a buffer with the bytes of an open file from an offset on.
ReadBytes = Callable[[int, int, memoryview], None]


@dataclass(frozen=True)
class Location:
    """Where a leaf's bytes lie.

    Args:
        file: Number of the open file.
        begin: First byte of the tensor.
        dtype: Its code.
        table, width: Which of its rows the leaf has, and their elements; None for all in order.
    """

    file: int
    begin: int
    dtype: str
    table: str | None = None
    width: int = 0

    def ranges(self, first: int, count: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield (position, length, offset in the file or None for zeros) of elements, in bytes."""
        size = DTYPES[self.dtype].size
        if self.table is None:
            yield 0, count * size, self.begin + first * size
            return
        for position, length, source in row_ranges(self.table, self.width, first, count):
            offset = None if source is None else self.begin + source * size
            yield position * size, length * size, offset

    def touched(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (file, offset, length) of all that is read for elements, in bytes."""
        for _, length, offset in self.ranges(first, count):
            if offset is not None:
                yield self.file, offset, length

    def read(self, read: ReadBytes, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements.

        Args:
            read: Reads bytes of the open files.
            first, count: Which elements of the leaf, flattened.
            into: The buffer.
        """
        if self.table is None:  # nearly always, and thousands of times
            size = DTYPES[self.dtype].size
            read(self.file, self.begin + first * size, into[: count * size])
            return
        for position, length, offset in self.ranges(first, count):
            part = into[position : position + length]
            if offset is None:
                part[:] = bytes(length)
            else:
                read(self.file, offset, part)


@dataclass(frozen=True)
class DecodedLocation:
    """Where the parts of a decoded leaf lie.

    Args:
        node: The decoded tensor.
        parts: Where each stored tensor lies.
        table: Which of its rows the leaf has; None for all in order.
    """

    node: ex.Decoded
    parts: Mapping[ex.Source, Location]
    table: str | None = None
    _held: Held = field(default_factory=dict, compare=False)
    dtype: ClassVar[str] = ex.Decoded.dtype

    def touched(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (file, offset, length) of all that is read for elements, in bytes."""
        for _, length, source in self._ranges(first, count):
            if source is not None:
                for part, begin, number in stored_ranges(self.node, source, length):
                    yield from self.parts[part].touched(begin, number)

    def read(self, read: ReadBytes, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements, as ``Location.read``."""
        import numpy as np

        target = np.frombuffer(into, "<f4", count)
        for position, length, source in self._ranges(first, count):
            if source is None:
                target[position : position + length] = 0
                continue
            part = partial(self._part, read)
            for values in decode_elements(self.node, part, self._held, source, length):
                target[position : position + len(values)] = values
                position += len(values)
        if self.table is not None or first + count >= ex.elements(self.node):
            self._held.clear()

    def _part(self, read: ReadBytes, part: ex.Source, begin: int, end: int) -> np.ndarray:
        import numpy as np

        from shardmerge.formats.values import stored_type

        found = np.empty(end - begin, stored_type(part.dtype))
        self.parts[part].read(read, begin, end - begin, memoryview(found).cast("B"))
        return found

    def _ranges(self, first: int, count: int) -> Iterator[tuple[int, int, int | None]]:
        return _element_ranges(self.node, self.table, first, count)


@dataclass(frozen=True)
class ArrangedLocation:
    """Where the operands of an arranged leaf lie.

    Args:
        node: The arranged tensor.
        parts: Where each operand lies.
        table: Which of its rows the leaf has; None for all in order.
    """

    node: ex.Arranged
    parts: Mapping[ex.Source | ex.Decoded, Location | DecodedLocation]
    table: str | None = None
    _held: Band = field(default_factory=dict, compare=False)

    @property
    def dtype(self) -> str:
        """Code of the elements' type."""
        return self.node.dtype

    def touched(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (file, offset, length) of all that is read for elements, in bytes."""
        for _, length, source in _element_ranges(self.node, self.table, first, count):
            if source is not None:
                for part, begin, number in arranged_ranges(self.node, source, length):
                    yield from self.parts[part].touched(begin, number)

    def read(self, read: ReadBytes, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements, as ``Location.read``."""
        import numpy as np

        from shardmerge.formats.values import stored_type

        def part(operand: ex.Source | ex.Decoded, begin: int, target: np.ndarray) -> None:
            self.parts[operand].read(read, begin, len(target), memoryview(target).cast("B"))

        target = np.frombuffer(into, stored_type(self.dtype), count)
        for position, length, source in _element_ranges(self.node, self.table, first, count):
            there = target[position : position + length]
            if source is None:
                there[:] = 0
            else:
                fill_elements(self.node, part, self._held, source, there)
        if self.table is not None or first + count >= ex.elements(self.node):
            self._held.clear()


AnyLocation = Location | DecodedLocation | ArrangedLocation


def span_ranges(
    leaf: AnyLocation, spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]] | None:
    """Return where spans of elements lie in a leaf's file, as (offset, bytes).

    None of a leaf that does not lie in one as it is.
    """
    if not isinstance(leaf, Location) or leaf.table is not None:
        return None
    size = DTYPES[leaf.dtype].size
    return [(leaf.begin + first * size, count * size) for first, count in spans]


def _element_ranges(
    node: ex.Decoded | ex.Arranged, table: str | None, first: int, count: int
) -> Iterator[tuple[int, int, int | None]]:
    """Yield (position, length, first element of the tensor or None for zeros)."""
    if table is None:
        return iter([(0, count, first)])
    return row_ranges(table, math.prod(node.shape[1:]), first, count)


def locate(leaf: FileLeaf, tensor: Callable[[ex.Source | ex.Delta], Location]) -> AnyLocation:
    """Return where a leaf lies.

    Args:
        leaf: Any that is read from files.
        tensor: Finds a tensor of a source, or a stored task vector.
    """
    match leaf:
        case ex.Decoded():
            return DecodedLocation(leaf, {part: tensor(part) for part in ex.operands(leaf)})
        case ex.Arranged():
            return ArrangedLocation(leaf, {p: locate(p, tensor) for p in ex.operands(leaf)})
        case ex.Rows(ex.Decoded() | ex.Arranged() as operand, table):
            return replace(locate(operand, tensor), table=table, _held={})
        case ex.Rows(operand, table):
            return replace(tensor(operand), table=table, width=math.prod(operand.shape[1:]))
    return tensor(leaf)


def apart(location: Any) -> Any:
    """Return a location for another thread: what one holds between reads is its own."""
    if isinstance(location, DecodedLocation | ArrangedLocation):
        return replace(location, _held={})
    return location
