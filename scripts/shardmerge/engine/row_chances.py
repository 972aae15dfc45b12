"""Native code that chooses elements by a number and their rank within a row, mostly without ranks.

An element is chosen if its number is no more than a bound that grows with its rank. A row's values
are counted in buckets of equal width. The ranks that a bucket's elements have tell for most numbers
what is chosen. For the few others, their ranks are counted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shardmerge.engine.assembly import LANES
from shardmerge.engine.choice_text import OPEN, choice_text, room_of
from shardmerge.engine.native import array_code, place_of
from shardmerge.engine.row_ranks import native_ranks
from shardmerge.methods.kernels.ranks import Choose, choice_by

_MOST_BUCKETS = 1 << 14


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
    if bounds[0] < 1 or (np.diff(bounds.astype(np.int64)) < 0).any():
        return by_ranks
    most = np.append(bounds, bounds[-1:]).astype(np.int64) - 1
    most = most.astype(np.uint32)

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
    buckets = min(1 << max(length.bit_length() - 2, 5), _MOST_BUCKETS)
    left = np.zeros(rows, np.uint8)
    chosen = np.empty(rows * length + LANES, np.uint8)
    room = np.empty(room_of(length, buckets), np.uint32)
    given = (_longer(one.reshape(-1)) for one in (values, numbers))
    arrays = (*given, most, left, room)
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
