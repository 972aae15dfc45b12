"""Native code that chooses elements by a number and their rank within a row, mostly without ranks.

An element is chosen if its number is no more than a bound that grows with its rank. A row's values
are counted in buckets of equal width. The ranks that a bucket's elements have tell for most numbers
what is chosen. For the few others, their ranks are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.chance_turns import AT_ONCE, ChanceTurns, ReadValues, turns_of
from shardmerge.engine.choice_text import OPEN, choice_text, room_of
from shardmerge.engine.native import array_code, place_of
from shardmerge.engine.row_ranks import native_ranks
from shardmerge.engine.scratch import scratch
from shardmerge.methods.kernels.keys import RandomStream
from shardmerge.methods.kernels.masks import ElementSpan, bits_of, numbers_of
from shardmerge.methods.kernels.ranks import Choose, RowMasks, choice_by
from shardmerge.methods.passes import RowChances

_MOST_BUCKETS = 1 << 14
#: Returns values of spans that were read, None where they take more.
ReadSpans = Callable[[Sequence[ElementSpan]], ReadValues | None]


def native_choice(
    bounds: np.ndarray, ranks: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
) -> Choose:
    """Return what chooses elements whose numbers are below the bounds of their ranks.

    Args:
        bounds: By rank, ascending.
        ranks: Finds those of values within rows, where a mask is set, and alone knows the order of
            equal ones; what is chosen of zeros does not matter. Without it the first has the
            lowest.
    """
    by_ranks = choice_by(native_ranks, bounds)
    if ranks:
        by_ranks = choice_by(lambda values: ranks(values, np.ones(values.shape, bool)), bounds)
    most = _greatest(bounds)
    if most is None:
        return by_ranks

    def choose(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        chosen, left = _told(values, numbers, most, ranks is None)
        (rest,) = left.nonzero()
        if len(rest) and ranks is None:
            chosen[rest] = by_ranks(values[rest], numbers[rest])
        elif len(rest):
            some = chosen[rest] == OPEN
            found = ranks(values[rest], some)[some]
            row, column = some.nonzero()
            chosen[rest[row], column] = numbers[rest[row], column] < bounds[found]
        return chosen.view(bool)

    return choose


def _greatest(bounds: np.ndarray) -> np.ndarray | None:
    """Return by rank the greatest number that is chosen, uint32, the last twice.

    None where the least rank allows none, or where bounds fall.
    """
    if bounds[0] < 1 or (np.diff(bounds.astype(np.int64)) < 0).any():
        return None
    return (np.append(bounds, bounds[-1:]).astype(np.int64) - 1).astype(np.uint32)


def _buckets(length: int) -> int:
    """Return how many buckets the elements of a row are counted in."""
    return min(1 << max(length.bit_length() - 3, 5), _MOST_BUCKETS)


class DrawnRowMasks(RowMasks):
    """Masks of which numbers are made and compared row by row, where streams have them.

    Args:
        values: As ``RowMasks`` has them, where they are no keys that lie in memory.
        read: Reads values whose keys are made then.
        wanted: What is chosen; of equal values the first has the lowest rank.
        shape: Of the tensor.
        choose: As ``RowMasks`` has it, where that is not done.
        little: Whether few rows are asked for.
    """

    def __init__(
        self,
        values: Callable[[Sequence[ElementSpan]], Sequence[np.ndarray]],
        read: ReadSpans,
        wanted: RowChances,
        shape: Sequence[int],
        choose: Sequence[Choose],
        *,
        little: bool = False,
    ) -> None:
        super().__init__(values, wanted, shape, choose, AT_ONCE, little=little)
        self._read = read
        most, self._turns = [_greatest(one) for one in wanted.bounds], None
        plain = all(isinstance(one, RandomStream) for one in wanted.numbers)
        if plain and self._inner == 1 and all(one is not None for one in most):
            buckets = _buckets(self._length)
            keys = [one.key for one in wanted.numbers]
            room = room_of(self._length, buckets)
            code = array_code(choice_text, True)
            self._turns = ChanceTurns(code, most, keys, 8, room, buckets)

    def _rows(self, spans: Sequence[ElementSpan]) -> list[np.ndarray]:
        values = self._read(spans) if self._turns else None
        if values is None:
            return super()._rows(spans)
        kinds, count = len(self._choose), sum(size for _, size in spans)
        # a vector may be written beyond
        chosen = scratch("chosen", kinds * (count + LANES), np.uint8).reshape(kinds, -1)
        left = np.zeros((kinds, count // self._length), np.uint8)
        turns = turns_of(spans, self._length)
        self._turns.run(turns, place_of(chosen), chosen.strides[0], left, values)
        if left.any():
            self._tell(spans, chosen[:, :count].reshape(kinds, -1, self._length), left)
        return [bits_of(one) for one in chosen[:, :count]]

    def _tell(self, spans: Sequence[ElementSpan], chosen: np.ndarray, left: np.ndarray) -> None:
        """Choose in rows of which it is not told, by all their ranks."""
        length = self._length
        firsts = [at for first, count in spans for at in range(first, first + count, length)]
        rows = np.flatnonzero(left.any(axis=0))
        own = [(firsts[row], length) for row in rows]
        values = self._values(own)
        for k, choose in enumerate(self._choose):
            numbers = numbers_of(self._numbers[k], own)
            chosen[k, rows] = choose(self._lines(values[k]), self._lines(numbers))


def _told(
    values: np.ndarray, numbers: np.ndarray, most: np.ndarray, first_is_lowest: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return which elements are chosen, 0 or 1, and in which rows that is not told of all.

    Where the first of equals need not be the lowest, what is not told is ``OPEN``.

    Args:
        values: float32 [rows, length], not negative.
        numbers: Of the elements, uint32.
        most: By rank, the greatest number that is chosen, uint32; the last twice.
        first_is_lowest: Of equal values the first has the lowest rank, else it is not known.
    """
    rows, length = values.shape
    buckets = _buckets(length)
    left = np.zeros(rows, np.uint8)
    chosen = np.empty(rows * length + LANES, np.uint8)
    room = np.empty(room_of(length, buckets), np.uint32)
    values, numbers = (_longer(one.reshape(-1)) for one in (values, numbers))
    arrays = (numbers, most, values, left, room)
    array_code(choice_text, first_is_lowest)(chosen, arrays, length, [rows, buckets])
    return chosen[: rows * length].reshape(rows, length), left


def _longer(x: np.ndarray) -> np.ndarray:
    """Return an array after which whole vectors can be read, the same if they can."""
    whole = x
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if place_of(x) + x.nbytes + LANES * x.itemsize <= place_of(whole) + whole.nbytes:
        return x
    return np.concatenate([x, np.zeros(LANES, x.dtype)])
