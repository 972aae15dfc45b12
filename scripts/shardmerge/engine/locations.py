"""How the elements of each kind of leaf are read from files: the one place that knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import FileLeaf
from shardmerge.algebra.rows import row_ranges
from shardmerge.base.dtypes import DTYPES

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

    def read(self, read: ReadBytes, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements.

        Args:
            read: Reads bytes of the open files.
            first, count: Which elements of the leaf, flattened.
            into: The buffer.
        """
        for position, length, offset in self.ranges(first, count):
            part = into[position : position + length]
            if offset is None:
                part[:] = bytes(length)
            else:
                read(self.file, offset, part)


def locate(leaf: FileLeaf, tensor: Callable[[ex.Source | ex.Delta], Location]) -> Location:
    """Return where a leaf lies.

    Args:
        leaf: Any that is read from files.
        tensor: Finds a tensor of a source, or a stored task vector.
    """
    match leaf:
        case ex.Rows(operand, table):
            return replace(tensor(operand), table=table, width=math.prod(operand.shape[1:]))
    return tensor(leaf)
