"""Native code for numbers of rows that are found in steps: all of a row while it is in the cache.

What is done with a row is a list of calls of code that is there already: ``reductions`` makes a
step's values, and here they are brought to one number. A step's values stay where the next one
finds them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.assembly import LANES
from shardmerge.engine.native import compiled
from shardmerge.engine.reductions import halving, native_reduction
from shardmerge.engine.row_calls import driver_text, last_text
from shardmerge.engine.tile_buffers import ReadFiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import RowSteps, step_values
from shardmerge.methods.program import Reducing, Reduction
from shardmerge.methods.symbolic import Given, StepValue, SymbolicElements


@dataclass
class _Call:
    """A call of native code for each row.

    Args:
        function: Address of the code.
        output: Where it writes for the first row.
        count: Elements.
        leaves: Where it reads for the first row.
        moves: Bytes by which these move from row to row.
        constants: That its steps name, at least one.
        first: Number of the constant that is the index of the row's first element.
        more: Its last argument.
        output_moves: Bytes by which the output moves.
    """

    function: int
    output: int
    count: int
    leaves: Sequence[int]
    moves: Sequence[int]
    constants: Sequence[float]
    first: int
    more: np.ndarray
    output_moves: int = 0
    keep: list[np.ndarray] = field(default_factory=list)

    def row(self, begin: int) -> list[int]:
        """Return its fields for rows from an element on."""
        constants = np.array([*self.constants, 0.0])
        constants[self.first] = begin
        self.keep = [np.array(self.leaves, np.int64), np.array(self.moves, np.int64), constants]
        leaves, moves, numbers = (one.ctypes.data for one in self.keep)
        own = [self.function, self.output, self.output_moves, leaves, moves, len(self.leaves)]
        return [*own, self.count, numbers, numbers + 8 * self.first, self.more.ctypes.data]


@dataclass(frozen=True)
class Step:
    """A step.

    Args:
        reduction: Its values as steps; loads are the values of the step before.
        given: What the steps need besides.
        numbers: Where the numbers that it finds go, float64 [values, all rows].
    """

    reduction: Reduction
    given: Given
    numbers: np.ndarray

    @property
    def is_whole(self) -> bool:
        """Whether its values need nothing but elements of files, tables and the step before."""
        given = self.given
        return not given.loads and not given.moving and given.held == len(self.reduction.loads)


def lowered_steps(
    wanted: RowSteps,
    rows: int,
    lowered: Callable[[Reducing, Callable], tuple[Reduction, Given]],
) -> list[Step]:
    """Return the steps of a request.

    Args:
        wanted: The request.
        rows: Of the tensor.
        lowered: Returns what reduces values: (how, function of elements).
    """
    steps: list[Step] = []
    found: Sequence[np.ndarray] = ()
    before: Callable[[SymbolicElements], Sequence[StepValue]] = partial(_held, 0)
    for kind, function in wanted.steps:
        values = partial(step_values, function, found, before)
        reduction, given = lowered(kind, values)
        found = np.zeros((len(reduction.values), rows))
        steps.append(Step(reduction, given, found))
        # what is added up is kept, what is compared is little work
        before = values if kind == "maxima" else partial(_held, len(found))
    return steps


def _held(number: int, x: SymbolicElements) -> list[StepValue]:
    return [x.held() for _ in range(number)]


class RowCode:
    """All steps of rows of a length.

    Args:
        locations: Of the leaves of files.
        files: That are read.
        steps: In order.
        length: Elements of a row, a multiple of LANES, at most BLOCK.
    """

    def __init__(
        self, locations: Sequence[Any], files: ReadFiles, steps: Sequence[Step], length: int
    ) -> None:
        self._locations, self._files = locations, files
        self._steps, self._length = steps, length
        sizes = [DTYPES[code].size for code in steps[0].reduction.leaves]
        self._buffers = [np.zeros(BLOCK * size, np.uint8) for size in sizes]
        # what a step leaves for the next, and what it is halved to
        most = max(len(step.reduction.values) for step in steps)
        self._held = [np.empty((len(step.reduction.values), length)) for step in steps]
        self._left = np.empty((most, length))
        self._one = np.array(1, np.int64)

    def find(self, begin: int, count: int) -> np.ndarray:
        """Return what the last step finds of some rows, float64 [values, rows]."""
        together = BLOCK // self._length
        for row in range(begin, begin + count, together):
            self._find(row, min(together, begin + count - row))
        return self._steps[-1].numbers[:, begin : begin + count].copy()

    def _find(self, row: int, rows: int) -> None:
        for location, buffer in zip(self._locations, self._buffers, strict=True):
            own = row * self._length, rows * self._length
            self._files.read_elements(location, *own, memoryview(buffer))
        leaves = [buffer.ctypes.data for buffer in self._buffers]
        calls: list[_Call] = []
        for k, step in enumerate(self._steps):
            calls += self._calls(k, step, leaves, row)
        table = np.array([one.row(row * self._length) for one in calls], np.int64)
        number = np.array([len(calls), self._length], np.int64)
        _driver()[0](table.ctypes.data, number.ctypes.data, rows, None, None)

    def _calls(self, k: int, step: Step, leaves: Sequence[int], row: int) -> list[_Call]:
        """Return what finds a step's numbers: its values, which are added up, to one number."""
        reduction, given, length = step.reduction, step.given, self._length
        held = self._held[k - 1].ctypes.data
        sizes = [DTYPES[code].size for code in reduction.leaves]
        before = [held + 8 * length * value for value in range(given.held)]
        tables = [one.ctypes.data for one in given.tables]
        places = [*leaves, *before, *tables]
        moves = [*(length * size for size in sizes), *[0] * (len(places) - len(sizes))]
        first = len(given.constants) if given.first is None else given.first
        kept, left = len(reduction.values), self._left.ctypes.data
        own = places, moves, given.constants, first, self._one
        code = native_reduction(reduction)
        if reduction.kind == "maxima":
            calls = [_Call(code.address(1), left, length, *own)]
            return [*calls, self._last(step, "maxima", LANES, LANES, row)]
        ways, rest = halving(kept, length)
        if k == len(self._steps) - 1:
            calls = [_Call(code.address(ways), left, length, *own)]
            return [*calls, self._last(step, "sums", length // ways, rest, row)]
        held = self._held[k].ctypes.data
        again = native_reduction(_held_values(kept))
        parts = [held + 8 * length * value for value in range(kept)]
        calls = [
            _Call(code.address(1), held, length, *own),
            _Call(again.address(ways), left, length, parts, [0] * kept, (), 0, self._one),
        ]
        return [*calls, self._last(step, "sums", length // ways, rest, row)]

    def _last(self, step: Step, kind: str, stride: int, count: int, row: int) -> _Call:
        """Return what brings that which is left of rows to one number."""
        numbers = step.numbers
        more = np.array([len(numbers), stride, numbers.strides[0] // 8], np.int64)
        place = numbers.ctypes.data + 8 * row
        function = ctypes.cast(_last_code(kind)[0], ctypes.c_void_p).value
        return _Call(function, place, count, [self._left.ctypes.data], [0], (), 0, more, 8)


def _held_values(kept: int) -> Reduction:
    """Return the reduction that adds up values that lie in memory."""
    loads = tuple(("load", (k,)) for k in range(kept))
    return Reduction((), loads, ("F64",) * kept, "sums", tuple(range(kept)))


@cache
def _driver() -> tuple[Callable[..., None], Any]:
    return compiled(driver_text())


@cache
def _last_code(kind: str) -> tuple[Callable[..., None], Any]:
    return compiled(last_text(kind))
