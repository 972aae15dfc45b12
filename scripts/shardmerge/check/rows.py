"""Rows of tensors at sampled elements: where each element lies in what it is taken from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.rows import choice_ranges, row_ranges
from shardmerge.algebra.samples import RUN, Runs

#: Elements of a tensor that are read at a time for the mean of its rows.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Gathered:
    """Where sampled elements of gathered rows lie in the tensor that they are taken from.

    Args:
        runs: What to read of it, each run beginning at a multiple of ``samples.RUN``.
        places: For every element of the runs that is wanted, its place among the sampled ones.
        chosen: The indices of those among the runs' elements.
    """

    runs: Runs
    places: np.ndarray
    chosen: np.ndarray


def are_rows(width: int, runs: Runs) -> bool:
    """Whether runs are one stretch of whole rows."""
    return len(runs) == 1 and all(number % width == 0 for number in runs[0])


def gathered(rows: ex.Rows, runs: Runs) -> Gathered:
    """Return where the elements of runs come from; zeros come from nowhere."""
    width = math.prod(rows.shape[1:])
    wanted, places, chosen = [], [], []
    done = read = 0
    for first, count in runs:
        for position, length, source in row_ranges(rows.table, width, first, count):
            if source is not None:
                before = source % RUN
                wanted.append((source - before, before + length))
                places.append(np.arange(done + position, done + position + length))
                chosen.append(np.arange(read + before, read + before + length))
                read += before + length
        done += count
    none = [np.zeros(0, np.int64)]
    return Gathered(tuple(wanted), np.concatenate(places or none), np.concatenate(chosen or none))


def chosen_parts(choice: ex.Choice, runs: Runs) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Yield (sampled elements, operands that they are the mean of)."""
    width, done = choice.width, 0
    for first, count in runs:
        for position, length, members in choice_ranges(choice.table, width, first, count):
            yield slice(done + position, done + position + length), members
        done += count


def mean_of_rows(
    shape: tuple[int, ...], values: Callable[[Runs], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of a tensor's rows and a bound on its error, float64 [elements of a row].

    Args:
        shape: Of the tensor.
        values: Returns elements and their error bounds; each run has whole rows.
    """
    count, width = shape[0], math.prod(shape[1:])
    step = max(_CHUNK // width // RUN, 1) * RUN
    total, error, size = (np.zeros(width) for _ in range(3))
    for row in range(0, count, step):
        number = min(step, count - row)
        value, bound = values(((row * width, number * width),))
        total += value.reshape(number, width).sum(axis=0)
        error += bound.reshape(number, width).sum(axis=0)
        size += np.abs(value).reshape(number, width).sum(axis=0)
    # Sums of n float64 numbers in any order: Higham 2002, section 4.2.
    return total / count, (error + 2.0**-51 * count * size) / count
