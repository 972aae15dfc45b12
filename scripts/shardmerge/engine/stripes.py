"""Some columns of a tensor, read once and laid out as a tensor of their own."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from shardmerge.algebra.samples import spread_tiles
from shardmerge.engine.assembly import LANES
from shardmerge.engine.tile_buffers import ReadFiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.torch_order import in_groups
from shardmerge.methods.kernels.torch_rows import ROW

#: Elements that are held of each leaf, but at least one group of columns.
_MOST = 1 << 22


class Stripes:
    """The columns, in groups that torch adds up together.

    Args:
        shape: Of the tensor.
        groups: Numbers of the groups, ascending.

    Attributes:
        columns: Indices of the columns.
    """

    def __init__(self, shape: Sequence[int], groups: Sequence[int]) -> None:
        self._rows, self._width = shape[0], math.prod(shape[1:])
        self._groups = np.array(groups)
        self.columns = (self._groups[:, None] * ROW + np.arange(ROW)).reshape(-1)
        self.until = 0
        self._held: list[np.ndarray] = []
        self._sizes: list[int] = []

    @classmethod
    def spread(cls, name: str, shape: Sequence[int], codes: Collection[str]) -> Stripes | None:
        """Return a spread of a tensor's columns; None if some are added up in another order.

        Args:
            name: Of the tensor, which decides about the places.
            shape: Its shape.
            codes: Of the types that are added up.
        """
        width = math.prod(shape[1:])
        if width % ROW or any(in_groups(shape, code) != width for code in codes):
            return None
        groups = spread_tiles(name, width // ROW)
        few = max(1, min(len(groups), _MOST // (shape[0] * ROW)))
        return cls(shape, groups[:: -(-len(groups) // few)])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._rows, len(self.columns)

    def read(self, locations: Sequence[Any], files: ReadFiles, sizes: Sequence[int]) -> Stripes:
        """Hold the columns of some leaves, if they are not yet; return what they are read from."""
        if self._held:
            return self
        step = max(1, 4 * BLOCK // self._width)
        for location, size in zip(locations, sizes, strict=True):
            raw = np.empty((step, self._width // ROW, ROW * size), np.uint8)
            held = np.zeros(self._rows * len(self.columns) * size + LANES * size, np.uint8)
            made = held[: -LANES * size].reshape(self._rows, -1, ROW * size)
            for row in range(0, self._rows, step):
                some = min(step, self._rows - row)
                into = memoryview(raw).cast("B")
                files.read_elements(location, row * self._width, some * self._width, into)
                made[row : row + some] = raw[:some, self._groups]
            self._held.append(held)
        self._sizes = list(sizes)
        return self

    def places(self, first: int, _count: int) -> list[int]:
        """Return the addresses of elements that follow each other."""
        pairs = zip(self._held, self._sizes, strict=True)
        return [held.ctypes.data + first * size for held, size in pairs]

    def numbers(self, made: Any, first: int, count: int) -> np.ndarray:
        """Return numbers of columns for consecutive elements, which begin a row.

        Args:
            made: Makes those of all columns, for elements of the tensor.
            first, count: Which elements of the stripes.
        """
        assert first % len(self.columns) == 0
        return np.resize(made(0, self._width)[self.columns], count)
