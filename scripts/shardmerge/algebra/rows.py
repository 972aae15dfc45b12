"""Tables of rows as short texts: which rows of a tensor, and which of several tensors.

A text is hashed once, compares fast, and is JSON already; runs keep it short where rows keep
their order. ``5+3`` are rows 5 to 7, ``9`` is row 9, ``-2`` two rows of zeros; of a choice,
``0*31999`` takes 31999 rows from the first tensor, ``1/2*4`` the mean of the second and third.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

#: The row of a table that is all zeros.
ZERO = -1


def format_rows(rows: Iterable[int]) -> str:
    """Return the table of rows, each a row's number or ZERO."""
    runs: list[list[int]] = []
    for row in rows:
        last = runs[-1] if runs else None
        if last and row == (ZERO if last[0] == ZERO else last[0] + last[1]):
            last[1] += 1
        else:
            runs.append([row, 1])
    return ",".join(
        f"-{n}" if row == ZERO else f"{row}+{n}" if n > 1 else f"{row}" for row, n in runs
    )


def format_choice(members: Iterable[tuple[int, ...]]) -> str:
    """Return the table of a choice: for each row the tensors whose mean it is, none for zeros."""
    parts = []
    for chosen, group in groupby(members):
        parts.append(f"{'/'.join(map(str, chosen)) or '-'}*{sum(1 for _ in group)}")
    return ",".join(parts)


def format_runs(runs: Iterable[tuple[int, int]]) -> str:
    """Return the table of a choice of (tensor, number of rows) in their order."""
    grouped = groupby(runs, key=lambda run: run[0])
    return ",".join(f"{chosen}*{sum(n for _, n in group)}" for chosen, group in grouped)


def all_rows(count: int) -> str:
    """Return the table of all of a tensor's rows in their order."""
    return "" if not count else f"0+{count}" if count > 1 else "0"


def expand_rows(table: str) -> list[int]:
    """Return every row of a table."""
    return [ZERO if row == ZERO else row + i for _, n, row in _rows(table)[1] for i in range(n)]


def expand_choice(table: str) -> list[tuple[int, ...]]:
    """Return what every row of a choice is made from."""
    return [members for _, n, members in _choice(table)[1] for _ in range(n)]


def row_count(table: str) -> int:
    """Return the number of rows of a table or of a choice."""
    _, runs = _choice(table) if "*" in table else _rows(table)
    return runs[-1][0] + runs[-1][1] if runs else 0


def shares(table: str, count: int) -> list[float]:
    """Return which part of the rows each tensor of a choice makes; of a mean an equal part."""
    found, whole = [0.0] * count, row_count(table)
    for _, n, members in _choice(table)[1]:
        for member in members:
            found[member] += n / len(members) / whole
    return found


def take(table: str, outer: str) -> str:
    """Return the rows of a table's rows that another table names."""
    inner = expand_rows(table)
    return format_rows(ZERO if row == ZERO else inner[row] for row in expand_rows(outer))


def take_choice(table: str, outer: str) -> str:
    """Return a choice for the rows that a table names."""
    inner = expand_choice(table)
    return format_choice(() if row == ZERO else inner[row] for row in expand_rows(outer))


def taken(table: str) -> int:
    """Return how many rows of a table are read: those that are not zeros."""
    return sum(n for _, n, row in _rows(table)[1] if row != ZERO)


def row_ranges(
    table: str, width: int, first: int, count: int
) -> Iterator[tuple[int, int, int | None]]:
    """Yield where elements of a gathered tensor come from.

    Args:
        table: Rows that were gathered.
        width: Elements of a row.
        first, count: Which elements of the gathered tensor, flattened.

    Yields:
        Position from ``first`` on, length, first element in the tensor that is gathered from
        (None for zeros), in elements and in order.
    """
    starts, runs = _rows(table)
    for begin, end, row, run in _overlaps(starts, runs, width, first, count):
        source = None if row == ZERO else row * width + begin - run
        yield begin - first, end - begin, source


def choice_ranges(
    table: str, width: int, first: int, count: int
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield (position, length, tensors) of a choice, as ``row_ranges`` does of rows."""
    starts, runs = _choice(table)
    for begin, end, members, _ in _overlaps(starts, runs, width, first, count):
        yield begin - first, end - begin, members


def _overlaps(
    starts: Sequence[int],
    runs: Sequence[tuple[int, int, Any]],
    width: int,
    first: int,
    count: int,
) -> Iterator[tuple[int, int, Any, int]]:
    """Yield (first element, end, value, first element of the run) of the runs in a range."""
    if not count or not width:
        return
    number = bisect_right(starts, first // width) - 1
    while number < len(runs) and (run := runs[number][0] * width) < first + count:
        end = run + runs[number][1] * width
        yield max(run, first), min(end, first + count), runs[number][2], run
        number += 1


@lru_cache(maxsize=256)
def _rows(table: str) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return the first row of every run, and the runs: (first row, rows, row taken or ZERO)."""
    runs, place = [], 0
    for part in table.split(",") if table else ():
        if part.startswith("-"):
            row, n = ZERO, int(part[1:])
        else:
            first, _, more = part.partition("+")
            row, n = int(first), int(more or 1)
        runs.append((place, n, row))
        place += n
    return [run[0] for run in runs], runs


@lru_cache(maxsize=256)
def _choice(table: str) -> tuple[list[int], list[tuple[int, int, tuple[int, ...]]]]:
    runs, place = [], 0
    for part in table.split(",") if table else ():
        chosen, _, n = part.partition("*")
        members = () if chosen == "-" else tuple(map(int, chosen.split("/")))
        runs.append((place, int(n), members))
        place += int(n)
    return [run[0] for run in runs], runs
