"""Native code for numbers of rows that are found in steps: all of a row while it is in the cache.

What is done with a row is a list of calls of code that is there already: ``reductions`` makes a
step's values, and here they are brought to one number. A step's values stay where the next one
finds them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np

from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.assembly import LANES
from shardmerge.engine.machine_code import compiled, compiled_together
from shardmerge.engine.reductions import halving, native_reduction
from shardmerge.engine.row_calls import driver_text, last_text
from shardmerge.engine.tile_buffers import ReadFiles, TileBuffers
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import RowSteps, step_values
from shardmerge.methods.program import Reducing, Reduction
from shardmerge.methods.symbolic import Given, StepValue, SymbolicElements


@dataclass(frozen=True)
class _Call:
    """A call of native code for each row.

    Args:
        function: Address of the code.
        output: Where it writes for row 0.
        count: Elements.
        leaves: Where it reads for the first row of those that are read together.
        moves: Bytes by which these move from row to row.
        constants: That its steps name.
        first: Number of the constant that is the index of the row's first element, or one more.
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


class _Calls:
    """Calls as the driver takes them, which changes them from row to row.

    Args:
        calls: For each row.
        length: Elements of a row.
    """

    def __init__(self, calls: Sequence[_Call], length: int) -> None:
        self._keep = calls
        self._size = np.array([len(calls), length], np.int64)
        numbers = [[*call.constants, 0.0] for call in calls]
        self._begun = (
            np.array([place for call in calls for place in call.leaves], np.int64),
            np.array([number for own in numbers for number in own]),
        )
        self._leaves, self._numbers = (one.copy() for one in self._begun)
        self._moves = np.array([one for call in calls for one in call.moves], np.int64)
        leaf = _starts([len(call.leaves) for call in calls])
        number = _starts(list(map(len, numbers)))
        self._firsts = number + [call.first for call in calls]
        fields = (
            [call.function for call in calls],
            [call.output for call in calls],
            [call.output_moves for call in calls],
            self._leaves.ctypes.data + 8 * leaf,
            self._moves.ctypes.data + 8 * leaf,
            [len(call.leaves) for call in calls],
            [call.count for call in calls],
            self._numbers.ctypes.data + 8 * number,
            self._numbers.ctypes.data + 8 * self._firsts,
            [call.more.ctypes.data for call in calls],
        )
        self._table = np.array(fields, np.int64).T.copy()

    def run(self, row: int, rows: int, offset: int) -> None:
        """Make the calls for some rows.

        Args:
            row, rows: Number of the first, and how many there are.
            offset: How many elements the first of them lies behind where the calls read.
        """
        leaves, numbers = self._begun
        np.add(leaves, self._moves * offset // self._size[1], out=self._leaves)
        self._numbers[:] = numbers
        self._numbers[self._firsts] = row * self._size[1]
        table = self._table.copy()
        table[:, 1] += row * table[:, 2]
        _driver()(table.ctypes.data, self._size.ctypes.data, rows, None, None)


def _starts(counts: Sequence[int]) -> np.ndarray:
    """Return where each of some lists begins, if they follow each other."""
    return np.cumsum([0, *counts[:-1]])


@dataclass(frozen=True)
class Step:
    """A step.

    Args:
        reduction: Its values as steps.
        given: What the steps need besides.
        numbers: Where the numbers that it finds go, float64 [values, all rows].
        is_last: Whether it makes them of numbers alone, which are the same for all elements.
    """

    reduction: Reduction
    given: Given
    numbers: np.ndarray
    is_last: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its values need nothing but elements of files and tables."""
        return not self.given.loads and not self.given.moving


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
    for kind, function in wanted.steps:
        reduction, given = lowered(kind, partial(step_values, function, found))
        found = np.zeros((len(reduction.values), rows))
        steps.append(Step(replace(reduction, in_row=True), given, found))
    if wanted.result:

        def result(x: SymbolicElements, numbers: Sequence[StepValue]) -> list[StepValue]:
            return [wanted.result(x, numbers)]

        values = partial(step_values, result, found)
        reduction, given = lowered("maxima", values)
        own = replace(reduction, in_row=True), given, np.zeros((1, rows))
        steps.append(Step(*own, is_last=True))
    return steps


class RowCode:
    """All steps of rows of a length.

    Args:
        reader: Of the leaves of files; it has read the rows that were looked at last.
        steps: In order.
        length: Elements of a row, a multiple of LANES, at most BLOCK.
    """

    def __init__(self, reader: TileBuffers, steps: Sequence[Step], length: int) -> None:
        self.reader = reader
        self._steps, self._length = steps, length
        # what values are halved to
        most = max(len(step.reduction.values) for step in steps)
        self._left = np.empty((most, length))
        self._one = np.array([1, 0], np.int64)

    def find(self, begin: int, count: int) -> np.ndarray:
        """Return what the last step finds of some rows, float64 [values, rows]."""
        for row, rows in row_groups(begin, count, self._length, self.reader.most):
            offset = self.reader.offset(row * self._length, rows * self._length)
            self._calls.run(row, rows, offset)
        return self._steps[-1].numbers[:, begin : begin + count].copy()

    def of(self, files: ReadFiles) -> RowCode:
        """Return the code for rows that another view of the files tells."""
        return RowCode(self.reader.of(files), self._steps, self._length)

    @cached_property
    def _calls(self) -> _Calls:
        _compile(tuple(step.reduction for step in self._steps), self._length)
        calls = [one for step in self._steps for one in self._calls_of(step)]
        return _Calls(calls, self._length)

    def _calls_of(self, step: Step) -> list[_Call]:
        """Return what finds a step's numbers: its values, which are added up, to one number."""
        reduction, given, length = step.reduction, step.given, self._length
        sizes = [DTYPES[code].size for code in reduction.leaves]
        places = [*self.reader.starts, *(one.ctypes.data for one in given.tables)]
        moves = [*(length * size for size in sizes), *[0] * (len(places) - len(sizes))]
        first = len(given.constants) if given.first is None else given.first
        left = self._left.ctypes.data
        own = places, moves, given.constants, first, self._one
        code = native_reduction(reduction)
        if reduction.kind == "maxima":
            # one vector tells of numbers that are the same in all
            calls = [_Call(code.address(1), left, LANES if step.is_last else length, *own)]
            return [*calls, self._last(step, "maxima", LANES, LANES)]
        ways, rest = halving(reduction, length)
        calls = [_Call(code.address(ways), left, length, *own)]
        return [*calls, self._last(step, "sums", length // ways, rest)]

    def _last(self, step: Step, kind: str, stride: int, count: int) -> _Call:
        """Return what brings that which is left of rows to one number."""
        numbers = step.numbers
        more = np.array([len(numbers), stride, numbers.strides[0] // 8], np.int64)
        code = _last_code(kind, step.reduction.code)
        function = ctypes.cast(code, ctypes.c_void_p).value
        left, place = [self._left.ctypes.data], numbers.ctypes.data
        return _Call(function, place, count, left, [0], (), 0, more, 8)


def row_groups(begin: int, count: int, length: int, most: int = BLOCK) -> list[tuple[int, int]]:
    """Return (first, number) of rows that are looked at together, of some rows of a length.

    Args:
        begin, count: The first row, and their number.
        length: Elements of a row.
        most: Elements of rows that are looked at together, if they have more than one.
    """
    together = max(1, most // length)
    firsts = range(begin, begin + count, together)
    return [(row, min(together, begin + count - row)) for row in firsts]


@cache
def _compile(reductions: Sequence[Reduction], length: int) -> None:
    """Make the code of all that is called for some steps of rows of a length."""
    texts = [driver_text()]
    for one in reductions:
        ways = halving(one, length)[0] if one.kind == "sums" else 1
        texts += [native_reduction(one).text(ways), last_text(one.kind, one.code)]
    compiled_together(texts)


@cache
def _driver() -> Callable[..., None]:
    return compiled(driver_text())


@cache
def _last_code(kind: str, code: str) -> Callable[..., None]:
    return compiled(last_text(kind, code))
