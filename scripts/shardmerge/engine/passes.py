"""Passes over what lies in files, before a tensor's elements are made: by native code."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import begin_passes
from shardmerge.algebra.leaves import block_leaves
from shardmerge.algebra.lowering import Steps, reduction_for, steps_for
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.locations import AnyLocation
from shardmerge.engine.reductions import native_reduction
from shardmerge.engine.tasks import TensorTask
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import Counts, Map, Sums, Wanted, along_first, resolve, vectors
from shardmerge.methods.program import Reduction
from shardmerge.methods.registry import passes_of
from shardmerge.methods.symbolic import Load

#: Tensors whose steps are kept: windows come in order, so that threads work on few at a time.
_REMEMBERED = 16


class NativePasses:
    """Finds what the calls of a tensor's expression do to its elements.

    Args:
        files: That a job reads.
        numerics: In which it computes.
    """

    def __init__(self, files: InputFiles, numerics: Numerics) -> None:
        self._files, self._numerics = files, numerics
        self._made: dict[ex.Call, Map] = {}

    def map(self, call: ex.Call) -> Map:
        """Return what a call that is computed in passes does to elements."""
        if call not in self._made:
            begin = passes_of(call.method, self._numerics)
            self._made[call] = resolve(
                begin_passes(call, begin), lambda wanted: self._answer(call, wanted)
            )
        return self._made[call]

    def _answer(self, call: ex.Call, wanted: Wanted) -> Any:
        leaves = block_leaves(call, self._files.stored, self._numerics)
        found = reduction_for(call, wanted, leaves, self._numerics, self.map)
        tiles = _Tiles([self._files.locate(leaf) for leaf in leaves.files], self._files, *found)
        shape = call.inputs[0].shape
        match wanted:
            case Sums(_, axis) if along_first(shape, axis):
                return tiles.sums_along_first(*vectors(shape, axis))
            case Sums(_, axis):
                return tiles.sums(*vectors(shape, axis))
            case Counts():
                return tiles.counts(ex.elements(call.inputs[0]))
        raise TypeError(f"not known to native code: {wanted!r}")


class StepsOf:
    """The steps of output tensors, those of calls in passes too.

    Args:
        tasks: Of the shard's tensors.
        files: That a job reads.
    """

    def __init__(self, tasks: Sequence[TensorTask], files: InputFiles) -> None:
        self._tasks, self._files = tasks, files
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
        maps = NativePasses(self._files, task.numerics).map
        rest = task.leaves, task.direct, task.numerics, maps
        return steps_for(task.expression, task.tensor.dtype, *rest)


class _Tiles:
    """The elements of a reduction's leaves, read tile by tile."""

    def __init__(
        self,
        locations: Sequence[AnyLocation],
        files: InputFiles,
        reduction: Reduction,
        constants: Sequence[float],
        loads: Sequence[Load],
    ) -> None:
        self._locations, self._files = locations, files
        self._code = native_reduction(reduction)
        self._constants, self._loads = constants, loads
        self._buffers = [np.empty(BLOCK * DTYPES[code].size, np.uint8) for code in reduction.leaves]

    def sums(self, rows: int, columns: int) -> np.ndarray:
        """Return the sums over vectors whose elements follow each other, [sums, vectors]."""
        done, parts = [], []
        for first, count, last in _tiles(rows, columns):
            length = min(count, columns)
            if rows == 1 and count == BLOCK:
                values = self._run(first, count, self._code.sums)[:, None]
            else:
                values = self._run(first, count, self._code.values)
                values = values.reshape(len(values), -1, length)
            parts.append(tree_sum(values))
            if last:
                done.append(tree_sum(np.stack(parts, axis=-1)))
                parts = []
        return np.concatenate(done, axis=1)

    def counts(self, count: int) -> list[int]:
        """Return how often each mask is set."""
        found = [self._run(first, size, self._code.counts) for first, size, _ in _tiles(1, count)]
        return [int(total) for total in np.sum(found, axis=0)]

    def sums_along_first(self, columns: int, rows: int) -> np.ndarray:
        """Return the sums over a matrix's rows, [sums, columns], each row read once."""
        parts = [
            self._halves(first, min(BLOCK, rows - first), columns)
            for first in range(0, rows, BLOCK)
        ]
        return tree_sum(np.stack(parts, axis=-1))

    def _halves(self, first: int, count: int, columns: int) -> np.ndarray:
        """Return the sum of consecutive rows by halves, [sums, columns]."""
        sizes = [count]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] - sizes[-1] // 2)

        def total(level: int, row: int) -> np.ndarray:
            if level == 0:
                return self._row((first + row) * columns, columns)
            value = total(level - 1, row)
            other = row + sizes[level]
            return value + total(level - 1, other) if other < sizes[level - 1] else value

        return total(len(sizes) - 1, 0)

    def _row(self, begin: int, count: int) -> np.ndarray:
        spans = range(begin, begin + count, BLOCK)
        parts = [self._run(i, min(BLOCK, begin + count - i), self._code.values) for i in spans]
        return np.concatenate(parts, axis=1)

    def _run(self, first: int, count: int, function: Callable[..., np.ndarray]) -> np.ndarray:
        for location, buffer in zip(self._locations, self._buffers, strict=True):
            self._files.read_elements(location, first, count, memoryview(buffer))
        made = [load(first, count) for load in self._loads]
        leaves = [array.ctypes.data for array in (*self._buffers, *made)]
        return function(leaves, count, self._constants)


def tree_sum(x: np.ndarray) -> np.ndarray:
    """Return the sum over the last dimension as ``kernels.blocks.tree_sum`` makes it."""
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
