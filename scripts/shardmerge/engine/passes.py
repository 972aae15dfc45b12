"""Passes over what lies in files, before a tensor's elements are made: by native code."""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import begin_passes
from shardmerge.algebra.leaves import FileLeaf, block_leaves
from shardmerge.algebra.lowering import Steps, reduction_for, steps_for
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.engine.assembly import LANES
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.locations import apart
from shardmerge.engine.record import Tally
from shardmerge.engine.reductions import DIGITS, TABLES, native_reduction
from shardmerge.engine.row_ranks import native_ranks
from shardmerge.engine.tasks import TensorTask
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.ranks import RanksInRows, find_bands
from shardmerge.methods.passes import (
    Bands,
    Counts,
    Elements,
    ElementValue,
    KeyBand,
    Map,
    RowRanks,
    Sums,
    Wanted,
    along_first,
    end_of,
    vectors,
)
from shardmerge.methods.program import Reducing, Reduction
from shardmerge.methods.registry import passes_of
from shardmerge.methods.symbolic import Given

_T = TypeVar("_T")
#: ReducedTiles whose counts fit in 32 bits many times over.
_COUNTED = 1 << 12
#: Tensors whose steps are kept: windows come in order, so that threads work on few at a time.
_REMEMBERED = 16


class ReadFiles(Protocol):
    """Open files of which elements of leaves are read."""

    stored: Collection[ex.Delta]

    def locate(self, leaf: FileLeaf) -> Any:
        """Return where a leaf lies."""

    def read_elements(self, leaf: Any, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of what was located."""


class NativePasses:
    """Finds what the calls of a tensor's expression do to its elements.

    Args:
        files: That a job reads.
        numerics: In which it computes.
    """

    #: Elements of rows whose ranks are found together.
    _together = BLOCK

    def __init__(self, files: ReadFiles, numerics: Numerics) -> None:
        self._files, self._numerics = files, numerics
        self._made: dict[ex.Call, Map] = {}
        #: Of each call what its passes found, as JSON-able data; None for what is not kept.
        self.answers: dict[ex.Call, list[Any]] = {}

    def map(self, call: ex.Call) -> Map:
        """Return what a call that is computed in passes does to elements."""
        if call not in self._made:
            begin = passes_of(call.method, self._numerics)
            self.answers[call] = []
            self._made[call] = end_of(
                begin_passes(call, begin), lambda wanted: self._answer(call, wanted)
            )
        return self._made[call]

    def inputs(self, call: ex.Call, runs: Iterable[tuple[int, int]]) -> list[np.ndarray]:
        """Return elements of a call's inputs as native code makes them, float32 [elements] each.

        Args:
            call: The call.
            runs: Which: (first, number).
        """
        each = range(len(call.inputs))
        tiles = self._tiles(call, lambda x: [x[i].double() for i in each], "sums")
        parts = [tiles.values(*run) for run in runs]
        return list(np.concatenate(parts, axis=1).astype(np.float32))

    def _answer(self, call: ex.Call, wanted: Wanted) -> Any:
        shape, count = call.inputs[0].shape, ex.elements(call.inputs[0])
        note = self.answers[call].append
        match wanted:
            case Sums(function, axis) if vectors(shape, axis)[0] == 1:
                table = self._table(call, self._tiles(call, function, "sums"), count)
                note(to_text(table))
                return halved_sum(table)[:, None]
            case Counts(function):
                table = self._table(call, self._tiles(call, function, "counts"), count)
                note(to_text(table))
                return [int(total) for total in table.sum(axis=1)]
            case Bands():
                bands = self._bands(call, wanted, count)
                note([[one.low, one.high, *one.at_low, *one.at_high] for one in bands])
                return bands
        note(None)
        match wanted:
            case Sums(function, axis) if along_first(shape, axis):
                tiles = self._tiles(call, function, "sums")
                return tiles.sums_along_first(*vectors(shape, axis))
            case Sums(function, axis):
                return self._tiles(call, function, "sums").sums(*vectors(shape, axis))
            case RowRanks(function):
                return self._row_ranks(call, function)
        raise TypeError(f"not known to native code: {wanted!r}")

    def _table(self, call: ex.Call, tiles: ReducedTiles, count: int) -> np.ndarray:
        """Return what each tile adds to a call's sums or counts, float64 [sums, tiles]."""
        return tiles.table(count, range(-(-count // BLOCK)))

    def _tiles(
        self, call: ex.Call, function: Callable[[Elements], Sequence[ElementValue]], kind: Reducing
    ) -> ReducedTiles:
        leaves = block_leaves(call, self._files.stored, self._numerics)
        found = reduction_for(call, function, kind, leaves, self._numerics, self.map)
        places = [apart(self._files.locate(leaf)) for leaf in leaves.files]
        return ReducedTiles(places, self._files, *found)

    def _row_ranks(
        self, call: ex.Call, function: Callable[[Elements], Sequence[ElementValue]]
    ) -> list[RanksInRows]:
        def of(k: int) -> RanksInRows:
            def values(first: int, count: int) -> np.ndarray:
                tiles = self._tiles(call, lambda x: [function(x)[k].double()], "sums")
                return tiles.values(first, count)[0].astype(np.float32)

            return RanksInRows(values, call.inputs[0].shape, native_ranks, self._together)

        asked: list[int] = []
        self._tiles(call, lambda x: asked.append(len(function(x))) or [], "counts")
        return [of(k) for k in range(asked[0])]

    def _bands(self, call: ex.Call, wanted: Bands, count: int) -> list[KeyBand]:
        def histograms(shift: int, pairs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
            def keys(x: Elements) -> list[ElementValue]:
                values = [value.key() for value in wanted.function(x)]
                return [values[k] for k, _ in pairs]

            tiles = self._tiles(call, keys, "low" if shift == 0 else "high")
            return tiles.histograms(count, [prefix for _, prefix in pairs])

        def locate(k: int, key: int, number: int) -> int:
            every = 0, count
            equal = KeyBand(key, key, every, every)

            def mask(x: Elements) -> ElementValue:
                return x.inside(wanted.function(x)[k], equal)

            counted = self._tiles(call, lambda x: [mask(x)], "counts")
            shown = self._tiles(call, lambda x: [x.number(mask(x)).double()], "sums")
            return counted.locate(shown, count, number)

        return find_bands(wanted.ranks, count, 32, histograms, locate)


class StepsOf:
    """The steps of output tensors, those of calls in passes too.

    Args:
        tasks: Of the shard's tensors.
        files: That a job reads.
        tally: Where what was found is noted.
    """

    def __init__(self, tasks: Sequence[TensorTask], files: InputFiles, tally: Tally) -> None:
        self._tasks, self._files, self._tally = tasks, files, tally
        self._lock = threading.Lock()
        self._found: OrderedDict[int, Future[Steps]] = OrderedDict()

    def __call__(self, tensor: int) -> Steps:
        """Return the steps of an output tensor; the first thread that asks makes its passes."""
        task = self._tasks[tensor]
        if not task.calls:
            return task.steps
        with self._lock:
            found = self._found.get(tensor)
            mine = found is None
            if mine:
                self._found[tensor] = found = Future()
                if len(self._found) > _REMEMBERED:
                    self._found.popitem(last=False)
        if mine:
            try:
                found.set_result(self._make(task))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def _make(self, task: TensorTask) -> Steps:
        passes = NativePasses(self._files, task.numerics)
        rest = task.leaves, task.direct, task.numerics, passes.map
        steps = steps_for(task.expression, task.tensor.dtype, *rest)
        answers = [passes.answers.get(call, []) for call in task.calls]
        self._tally.add_passes(task.tensor.name, answers)
        return steps


class ReducedTiles:
    """The elements of a reduction's leaves, read tile by tile."""

    def __init__(
        self,
        locations: Sequence[Any],
        files: ReadFiles,
        reduction: Reduction,
        given: Given,
    ) -> None:
        self._locations, self._files = locations, files
        self._code, self._given = native_reduction(reduction), given
        self._sizes = [DTYPES[code].size for code in (*reduction.leaves, *reduction.loads)]
        own = self._sizes[: len(reduction.leaves)]
        self._buffers = [np.zeros((BLOCK + LANES) * size, np.uint8) for size in own]

    def sums(self, rows: int, columns: int) -> np.ndarray:
        """Return the sums over vectors whose elements follow each other, [sums, vectors]."""
        done, parts = [], []
        for first, count, last in _tiles(rows, columns):
            values = self.values(first, count)
            parts.append(halved_sum(values.reshape(len(values), -1, min(count, columns))))
            if last:
                done.append(halved_sum(np.stack(parts, axis=-1)))
                parts = []
        return np.concatenate(done, axis=1)

    def table(self, count: int, chosen: Sequence[int]) -> np.ndarray:
        """Return what some tiles add to sums or counts, float64 [sums, tiles].

        Args:
            count: Elements of the whole tensor.
            chosen: Numbers of the tiles.
        """
        counts = self._code.reduction.kind == "counts"
        one = self._counts if counts else self._sums
        spans = [(i * BLOCK, min(BLOCK, count - i * BLOCK)) for i in chosen]
        return np.stack([one(*span).astype(np.float64) for span in spans], axis=-1)

    def _sums(self, first: int, count: int) -> np.ndarray:
        found = self._run(first, count, self._code.sums)
        # parts of a tile, between which constants change, are added up together
        return halved_sum(found[0] if len(found) == 1 else self.values(first, count))

    def _counts(self, first: int, count: int) -> np.ndarray:
        return np.sum(self._run(first, count, self._code.counts), axis=0)

    def locate(self, shown: ReducedTiles, count: int, number: int) -> int:
        """Return the index of the element that is so manieth for which the mask is set.

        Args:
            shown: Adds up the mask as numbers.
            count: Elements.
            number: Which of them, from 0.
        """
        for first, size, _ in _tiles(1, count):
            there = int(self._counts(first, size)[0])
            if number < there:
                values = np.concatenate(shown._run(first, size, shown._code.values), axis=1)
                return first + int(np.flatnonzero(values[0])[number])
            number -= there
        raise ValueError("there are not so many")

    def histograms(self, count: int, prefixes: Sequence[int]) -> list[np.ndarray]:
        """Return how often each half of the keys occurs, int64 [DIGITS] for each value."""
        tables = np.zeros((len(prefixes), TABLES, DIGITS + LANES), np.uint32)
        total = np.zeros((len(prefixes), DIGITS), np.int64)
        of = np.array(prefixes, np.int32)
        tiles = list(_tiles(1, count))
        for number, (first, size, _) in enumerate(tiles, 1):
            self._run(first, size, partial(self._code.add_digits, tables), of)
            if number % _COUNTED == 0 or number == len(tiles):
                total += tables[:, :, :DIGITS].sum(axis=1, dtype=np.int64)
                tables[:] = 0
        return list(total)

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
        parts = [self._run(i, min(BLOCK, begin + count - i), self._code.values) for i in spans]
        return np.concatenate([piece for part in parts for piece in part], axis=1)

    def _halves(self, first: int, count: int, columns: int) -> np.ndarray:
        """Return the sum of consecutive rows by halves, [sums, columns]."""
        sizes = [count]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] - sizes[-1] // 2)

        def total(level: int, row: int) -> np.ndarray:
            if level == 0:
                return self.values((first + row) * columns, columns)
            value = total(level - 1, row)
            other = row + sizes[level]
            return value + total(level - 1, other) if other < sizes[level - 1] else value

        return total(len(sizes) - 1, 0)

    def _run(
        self, first: int, count: int, function: Callable[..., _T], *more: np.ndarray
    ) -> list[_T]:
        """Return what a function makes of a tile, in pieces where constants change."""
        for location, buffer in zip(self._locations, self._buffers, strict=True):
            self._files.read_elements(location, first, count, memoryview(buffer))
        made = [_longer(load(first, count)) for load in self._given.loads]
        places = [array.ctypes.data for array in (*self._buffers, *made)]
        results = []
        for begin, size, constants in self._given.pieces(first, count):
            pairs = zip(places, self._sizes, strict=True)
            leaves = [place + (begin - first) * one for place, one in pairs]
            results.append(function(leaves, size, constants, *more))
        return results


def _longer(x: np.ndarray) -> np.ndarray:
    """Return an array with room for whole vectors at its end."""
    return np.concatenate([x, np.zeros(LANES, x.dtype)])


def to_text(table: np.ndarray) -> str:
    """Return float64 numbers as text, for a record."""
    return base64.b64encode(table.astype("<f8").tobytes()).decode()


def halved_sum(x: np.ndarray) -> np.ndarray:
    """Return the sum over the last dimension as ``kernels.blocks.halved_sum`` makes it."""
    count = x.shape[-1]
    if count == 0:
        return np.zeros(x.shape[:-1])
    x = x.copy()
    while count > 1:
        half = count // 2
        x[..., :half] += x[..., count - half : count]
        count -= half
    return x[..., 0].copy()


def _tiles(rows: int, columns: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (first element, number, whether rows end with it) of tiles of a matrix in order."""
    if columns > BLOCK:
        for begin in range(0, rows * columns, columns):
            for first in range(0, columns, BLOCK):
                count = min(BLOCK, columns - first)
                yield begin + first, count, first + count == columns
        return
    step = max(1, BLOCK // columns)
    for row in range(0, rows, step):
        yield row * columns, min(step, rows - row) * columns, True
