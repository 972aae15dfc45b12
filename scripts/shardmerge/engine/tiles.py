"""The elements of leaves, read tile by tile and reduced: added up in a fixed order, or counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.assembly import LANES
from shardmerge.engine.chance_turns import ReadValues
from shardmerge.engine.halves import halved_sum, halved_together
from shardmerge.engine.held import tile_buffers
from shardmerge.engine.native import place_of
from shardmerge.engine.reductions import native_reduction
from shardmerge.engine.stripes import Stripes
from shardmerge.engine.tile_buffers import ReadFiles, TileBuffers
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket
from shardmerge.methods.program import Reduction
from shardmerge.methods.symbolic import Given

_T = TypeVar("_T")
#: Tiles whose counts fit in 32 bits many times over.
_COUNTED = 1 << 12
#: Numbers of parts and tiles that are kept of a bracket, at most: 8 MB.
_KEPT = 1 << 20
#: Elements of rows that are read together where columns are added up: what they make stays in a
#: processor's cache.
_TOGETHER = BLOCK // 8


@dataclass(frozen=True)
class BracketCount:
    """Where keys lie as to a bracket.

    Args:
        below: How many lie below it.
        parts: How many lie in each of its parts, int64.
        after: How many do up to the end of so many tiles, and of twice as many and so on, int64
            [times, parts].
        every: How many tiles that are.
    """

    below: int
    parts: np.ndarray
    after: np.ndarray
    every: int

    def tile_of(self, part: int, number: int) -> tuple[int, int]:
        """Return a tile near before the so manieth key of a part, and how many lie before it."""
        upto = self.after[:, part]
        times = int(np.searchsorted(upto, number, side="right"))
        return times * self.every, int(upto[times - 1]) if times else 0


class ReducedTiles:
    """The elements of a reduction's leaves, read tile by tile.

    Args:
        locations, files: Where the leaves lie.
        reduction: What is made of them.
        given: What that needs besides.
        reader: Reads these leaves for others too.
        little: Whether few of them are reduced.
    """

    def __init__(
        self,
        locations: Sequence[Any],
        files: ReadFiles,
        reduction: Reduction,
        given: Given,
        reader: TileBuffers | Stripes | None = None,
        *,
        little: bool = False,
    ) -> None:
        self._code, self._given = native_reduction(reduction, little=little), given
        self._sizes = [DTYPES[code].size for code in reduction.leaves]
        self._buffers = reader or tile_buffers(locations, files, self._sizes)
        self._tables = [table.ctypes.data for table in given.tables]

    def sums(self, rows: int, columns: int, begin: int = 0) -> np.ndarray:
        """Return the sums over vectors whose elements follow each other, [sums, vectors].

        Args:
            rows: How many vectors.
            columns: Elements of each.
            begin: The first of them.
        """
        return self._rows(rows, columns, begin, self._row_sums, halved_sum)

    def maxima(self, rows: int, columns: int, begin: int = 0) -> np.ndarray:
        """Return the greatest values of vectors whose elements follow each other, as ``sums``."""
        return self._rows(rows, columns, begin, self._row_maxima, partial(np.max, axis=-1))

    def _rows(
        self,
        rows: int,
        columns: int,
        begin: int,
        one: Callable[[int, int, int], np.ndarray],
        together: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Return what is made of rows: of each tile, and of the tiles of long rows together."""
        done, parts = [], []
        self.in_order((begin + rows) * columns)
        for first, count, last in _tiles(rows, columns, begin):
            parts.append(one(first, count, -(-count // columns)))
            if last:
                done.append(parts[0] if len(parts) == 1 else together(np.stack(parts, axis=-1)))
                parts = []
        return np.concatenate(done, axis=1).astype(np.float64, copy=False)

    def _row_sums(self, first: int, count: int, rows: int) -> np.ndarray:
        found = self._run(first, count, partial(self._code.sums, rows))
        return halved_sum(self._whole(found, first, count, rows))

    def _row_maxima(self, first: int, count: int, rows: int) -> np.ndarray:
        if self._code.reduction.kind == "sums":
            return self._whole([], first, count, rows).max(axis=-1)
        (found,) = self._run(first, count, partial(self._code.maxima, rows))
        return found

    def _whole(self, found: list[np.ndarray], first: int, count: int, rows: int) -> np.ndarray:
        """Return what was found, or values where a tile was cut where constants change."""
        if len(found) == 1:
            return found[0]
        values = self.values(first, count)
        return values.reshape(len(values), rows, -1)

    def table(self, count: int, chosen: Sequence[int], step: int = BLOCK) -> np.ndarray:
        """Return what some tiles add to sums or counts, float64 [sums, tiles].

        Args:
            count: Elements of the whole tensor.
            chosen: Numbers of the tiles.
            step: Elements of a tile, at most BLOCK.
        """
        self.in_order(count if len(chosen) * step >= count else 0)
        if self._code.reduction.kind == "counts":
            spans = [(i * step, min(step, count - i * step)) for i in chosen]
            return np.stack([self._counts(*span).astype(np.float64) for span in spans], axis=-1)
        groups = self._together(chosen, count, step)
        return halved_together([part for group in groups for part in self._parts(*group)])

    def _together(
        self, chosen: Sequence[int], count: int, step: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (first element, elements, tiles) of tiles that are added up in one go.

        Those follow each other, and have the same constants.
        """
        most = self._buffers.most // step if self._given.stays else 1
        for _, run in itertools.groupby(enumerate(chosen), lambda pair: pair[1] - pair[0]):
            tiles = [tile for _, tile in run]
            last = tiles.pop() if (tiles[-1] + 1) * step > count else None
            for k in range(0, len(tiles), most):
                some = len(tiles[k : k + most])
                yield tiles[k] * step, some * step, some
            if last is not None:
                yield last * step, count - last * step, 1

    def in_order(self, until: int) -> None:
        """Expect that all elements up to one are asked for in order."""
        self._buffers.until = until

    def _parts(self, first: int, count: int, tiles: int) -> list[np.ndarray]:
        """Return of each tile few values that add up to its sums by halves, float64 [sums, some].

        Args:
            first, count: The elements of all tiles.
            tiles: How many there are, of the same length.
        """
        found = self._run(first, count, partial(self._code.sums, tiles))
        parts = self._whole(found, first, count, tiles)
        parts = parts if parts.shape[2] <= LANES else halved_sum(parts)[:, :, None]
        return [parts[:, k] for k in range(tiles)]

    def _counts(self, first: int, count: int) -> np.ndarray:
        return np.sum(self._run(first, count, self._code.counts), axis=0)

    def brackets(self, count: int, brackets: Sequence[Bracket]) -> list[BracketCount]:
        """Return where the keys of each value lie as to its bracket."""
        ends = np.cumsum([LANES + one.parts for one in brackets])
        rows = [slice(end - one.parts, end) for end, one in zip(ends, brackets, strict=True)]
        tables, total = np.zeros(ends[-1], np.uint32), np.zeros(ends[-1], np.int64)
        pairs = zip(brackets, rows, strict=True)
        of = np.array([(x.low, x.shift, x.parts, own.start - LANES) for x, own in pairs], np.int32)
        tiles = list(_tiles(1, count))
        self.in_order(count)
        every = [max(1, -(-one.parts * len(tiles) // _KEPT)) for one in brackets]
        after: list[list[np.ndarray]] = [[] for _ in brackets]
        for number, (first, size, _) in enumerate(tiles, 1):
            self._run(first, size, partial(self._code.add_keys, tables), of)
            for k, own in enumerate(rows):
                if number % every[k] == 0:
                    after[k].append(total[own] + tables[own])
            if number % _COUNTED == 0 or number == len(tiles):
                total += tables
                tables[:] = 0
        return [
            BracketCount(
                int(total[own.start - LANES : own.start].sum()),
                total[own],
                np.array(seen).reshape(len(seen), one.parts),
                step,
            )
            for one, own, seen, step in zip(brackets, rows, after, every, strict=True)
        ]

    def catch(self, found: np.ndarray, first: int, count: int, more: np.ndarray) -> None:
        """Count keys of tiles that lie below brackets, and keep those that lie in them.

        Args:
            found, more: As ``NativeReduction.catch`` has them; the latter tells of the tiles.
            first, count: The elements of all tiles, of which there is one unless ``is_one_piece``.
        """
        tiles = int(more[0])
        for leaves, size, constants in self._pieces(first, count):
            self._code.catch(found, leaves, size // tiles, constants, more)

    def parts(self, first: int, count: int, rows: int) -> np.ndarray:
        """Return what torch adds up first of consecutive elements, float32 [sums, parts, LANES]."""
        (found,) = self._run(first, count, partial(self._code.parts, rows))
        return found

    def add_squares(self, sums: np.ndarray, first: int, count: int, each: int) -> None:
        """Add squares of consecutive elements to sums as torch does.

        Args:
            sums: float32 [rows, values, lanes], of rows that follow each other.
            first, count: Which elements.
            each: Elements of a row.
        """
        rows = np.array([each, 0], np.int64)
        (_,) = self._run(first, count, partial(self._code.add_squares, sums, rows))

    def add_whole(
        self, squares: np.ndarray, first: int, count: int, rows: int, told: np.ndarray
    ) -> None:
        """Add consecutive elements as torch does; see ``NativeReduction.add_whole``."""
        (_,) = self._run(first, count, partial(self._code.add_whole, squares, rows), told)

    def sums_along_first(self, columns: int, rows: int) -> np.ndarray:
        """Return the sums over a matrix's rows, [sums, columns], each row read once."""
        parts = [
            self._halves(first, min(BLOCK, rows - first), columns)
            for first in range(0, rows, BLOCK)
        ]
        return halved_sum(np.stack(parts, axis=-1))

    def values(self, begin: int, count: int) -> np.ndarray:
        """Return the values of consecutive elements, float64 [values, elements]."""
        spans = range(begin, begin + count, BLOCK)
        self.in_order(begin + count)
        parts = [self._run(i, min(BLOCK, begin + count - i), self._code.values) for i in spans]
        return np.concatenate([piece for part in parts for piece in part], axis=1)

    def bits(self, begin: int, count: int) -> np.ndarray:
        """Return the keys of consecutive elements, uint32 [values, elements]."""
        spans = range(begin, begin + count, BLOCK)
        self.in_order(begin + count)
        parts = [self._run(i, min(BLOCK, begin + count - i), self._code.bits) for i in spans]
        pieces = [piece for part in parts for piece in part]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def bits_of(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the keys of spans of elements, one after the other, uint32 [values, elements].

        Where nothing depends on where elements lie, spans are looked at together.
        """
        count = sum(size for _, size in spans)
        if len(spans) == 1 or count > BLOCK or not self._is_same:
            found = [self.bits(*span) for span in spans]
            return found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        return self._code.bits(self._buffers.gathered(spans), count, self._given.constants)

    def read(self, spans: Sequence[tuple[int, int]], most: int) -> ReadValues | None:
        """Return the keys of spans of elements, one after the other, that code is to make.

        None where something depends on where elements lie, and where they are more than ``most``.
        """
        if not self._is_same or sum(n for _, n in spans) > most:
            return None
        buffers = self._buffers
        places = buffers.places(*spans[0]) if len(spans) == 1 else buffers.gathered(spans)
        return ReadValues(self._code.address(1), places, self._sizes, self._given.constants)

    @property
    def is_one_piece(self) -> bool:
        """Whether constants are the same for all elements, but for their index."""
        return not self._given.moving

    @property
    def _is_same(self) -> bool:
        """Whether nothing depends on where elements lie."""
        return self._given.stays and not self._given.loads

    def _halves(self, first: int, count: int, columns: int) -> np.ndarray:
        """Return the sum of consecutive rows by halves, [sums, columns].

        Rows that follow each other are read together, a few at a time.
        """
        most = max(1, _TOGETHER // columns)
        sizes = [count]
        while sizes[-1] > most:
            sizes.append(sizes[-1] - sizes[-1] // 2)

        def total(level: int, row: int, number: int) -> np.ndarray:
            """Return some rows of what is left after so many halves, [sums, rows, columns]."""
            if level == 0:
                values = self.values((first + row) * columns, number * columns)
                return values.reshape(len(values), number, columns)
            value = total(level - 1, row, number)
            other = row + sizes[level]
            there = min(number, sizes[level - 1] - other)
            if there > 0:
                value[:, :there] += total(level - 1, other, there)
            return value

        return halved_sum(total(len(sizes) - 1, 0, sizes[-1]), axis=1)

    def _run(
        self, first: int, count: int, function: Callable[..., _T], *more: np.ndarray
    ) -> list[_T]:
        """Return what a function makes of a tile, in pieces where constants change."""
        pieces = self._pieces(first, count)
        return [function(leaves, size, constants, *more) for leaves, size, constants in pieces]

    def _pieces(self, first: int, count: int) -> Iterator[tuple[list[int], int, Sequence[float]]]:
        """Yield (addresses, elements, constants) of the pieces of a tile, read already."""
        # what is loaded may be found of the same elements, with more of them read
        pieces = [
            (*piece, [_longer(load(*piece[:2])) for load in self._given.loads])
            for piece in self._given.pieces(first, count)
        ]
        places = self._buffers.places(first, count)
        for begin, size, constants, made in pieces:
            pairs = zip(places, self._sizes, strict=True)
            leaves = [place + (begin - first) * one for place, one in pairs]
            yield [*leaves, *map(place_of, made), *self._tables], size, constants


def _longer(x: np.ndarray) -> np.ndarray:
    """Return an array with room for whole vectors at its end."""
    return np.concatenate([x, np.zeros(LANES, x.dtype)])


def _tiles(rows: int, columns: int, begin: int = 0) -> Iterator[tuple[int, int, bool]]:
    """Yield (first element, number, whether rows end with it) of tiles of rows in order."""
    if columns > BLOCK:
        for row in range(begin * columns, (begin + rows) * columns, columns):
            for first in range(0, columns, BLOCK):
                count = min(BLOCK, columns - first)
                yield row + first, count, first + count == columns
        return
    step = max(1, BLOCK // columns)
    for row in range(begin, begin + rows, step):
        yield row * columns, min(step, begin + rows - row) * columns, True
