"""Weighted sums of rows at sampled elements: term by term, where each element comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import sum_dtype
from shardmerge.algebra.samples import RUN, Runs, count_of
from shardmerge.algebra.transplant import NO_ROW
from shardmerge.check.error_bounds import Estimate, joined, rounded_error


@dataclass(frozen=True)
class Term:
    """One term of the sums that sampled elements are.

    Args:
        runs: What to read of the operand, each run beginning at a multiple of ``samples.RUN``.
        places: For every element of the runs that is wanted, its place among the sampled ones.
        chosen: The indices of those among the runs' elements.
        weights: float64, for every place.
    """

    runs: Runs
    places: np.ndarray
    chosen: np.ndarray
    weights: np.ndarray


def terms_of_rows(
    node: ex.RowSums, read: Callable[[ex.Source, Runs], np.ndarray], runs: Runs
) -> Iterator[Term]:
    """Yield the terms of the sums in the order in which they are added."""
    count, most = node.rows.shape
    width = math.prod(node.shape[1:])
    stretches = list(_stretches(runs, width))
    wanted = sorted({row for _, _, row, _ in stretches})
    rows = read(node.rows, ((0, count * most),)).view(np.int32).reshape(count, most)[wanted]
    weights = read(node.weights, ((0, count * most),)).view(np.float32).reshape(count, most)
    weights = weights[wanted].astype(np.float64)
    last = np.where(rows == NO_ROW, np.iinfo(np.int32).max, rows)
    order = np.argsort(last, axis=1, kind="stable")
    rows, weights = (np.take_along_axis(table, order, axis=1) for table in (rows, weights))
    numbers = {row: number for number, row in enumerate(wanted)}
    for slot in range(most):
        if not (rows[:, slot] == NO_ROW).all():
            yield _term(stretches, numbers, rows[:, slot], weights[:, slot], width)


def sum_of_rows(
    node: ex.RowSums,
    read: Callable[[ex.Source, Runs], np.ndarray],
    runs: Runs,
    operand: Callable[[Runs], Estimate],
) -> Estimate:
    """Return sampled elements of sums of rows, with the running bound of their rounding errors.

    Args:
        node: The sums.
        read: Reads elements of a source tensor.
        runs: Which elements.
        operand: Estimates elements of the operand.
    """
    code, count, parts = sum_dtype(node), count_of(runs), []
    value, error, reached = np.zeros(count), np.zeros(count), np.zeros(count, bool)
    for term in terms_of_rows(node, read, runs):
        part = operand(term.runs)
        parts.append(part)
        given, carried = part.value[term.chosen], part.error[term.chosen]
        product, carried = term.weights * given, np.abs(term.weights) * carried
        rounded = rounded_error(product, carried, code)
        carried = np.where(np.abs(term.weights) == 1, carried, rounded)
        # the first term as it is, so that -0 stays
        sums = np.where(reached[term.places], value[term.places] + product, product)
        bound = rounded_error(sums, error[term.places] + carried, code)
        value[term.places], error[term.places], reached[term.places] = sums, bound, True
    # What comes from an infinite source must be infinite or NaN itself.
    return joined(value, np.where(np.isfinite(value), error, 0.0), parts)


def _stretches(runs: Runs, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (place among the sampled elements, length, row, column), none longer than a row."""
    done = 0
    for first, count in runs:
        place = 0
        while place < count:
            row, column = divmod(first + place, width)
            length = min(count - place, width - column)
            yield done + place, length, row, column
            place += length
        done += count


def _term(
    stretches: list[tuple[int, int, int, int]],
    numbers: dict[int, int],
    rows: np.ndarray,
    weights: np.ndarray,
    width: int,
) -> Term:
    runs, places, chosen, factors, read = [], [], [], [], 0
    for place, length, row, column in stretches:
        number = numbers[row]
        if (taken := int(rows[number])) == NO_ROW:
            continue
        source = taken * width + column
        before = source % RUN
        runs.append((source - before, before + length))
        places.append(np.arange(place, place + length))
        chosen.append(np.arange(read + before, read + before + length))
        factors.append(np.full(length, weights[number]))
        read += before + length
    none = [np.zeros(0, np.int64)]
    return Term(
        tuple(runs) or ((0, 0),),
        np.concatenate(places or none),
        np.concatenate(chosen or none),
        np.concatenate(factors or [np.zeros(0)]),
    )
