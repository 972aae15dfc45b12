"""Ranks of values within their rows, and masks that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.masks import (
    ElementSpan,
    KeptMasks,
    SpanMasks,
    bits_of,
    numbers_of,
)
from shardmerge.methods.passes import Masks, RowChances

#: Returns which elements of rows are chosen, bool: (values, numbers), each [rows, length].
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]
_HALF = 16


class RowMasks:
    """The masks of what is chosen by ranks in rows, found where they are asked for, and kept.

    Args:
        values: Returns values of each kind, of some spans of elements one after the other.
        wanted: What is chosen.
        shape: Of the tensor.
        choose: Finds for each kind the masks of rows, by their values and numbers.
        together: Elements of rows that are looked at together, if rows are shorter.
        little: Whether few rows are asked for: no others are looked at.
    """

    def __init__(
        self,
        values: Callable[[Sequence[ElementSpan]], Sequence[np.ndarray]],
        wanted: RowChances,
        shape: Sequence[int],
        choose: Sequence[Choose],
        together: int = BLOCK,
        *,
        little: bool = False,
    ) -> None:
        self._values, self._numbers, self._choose = values, wanted.numbers, choose
        self._length = shape[1] if len(shape) > 1 else math.prod(shape)
        self._inner = math.prod(shape[2:])
        row = self._length * self._inner
        step = row if little else row * max(1, together // max(row, 1))
        kind = SpanMasks if little else KeptMasks
        self._found = kind(self._rows, step, math.prod(shape))

    def masks(self) -> list[Masks]:
        """Return the mask of each kind of values."""
        return self._found.masks(len(self._choose))

    def _rows(self, spans: Sequence[ElementSpan]) -> list[np.ndarray]:
        """Return the masks of some whole rows."""
        values = self._values(spans)
        numbers = [numbers_of(one, spans) for one in self._numbers]
        return [
            bits_of(self._flat(choose(self._lines(value), self._lines(number))))
            for value, number, choose in zip(values, numbers, self._choose, strict=True)
        ]

    def _lines(self, x: np.ndarray) -> np.ndarray:
        """Return elements as rows that follow each other, [rows, length]."""
        if self._inner > 1:
            x = x.reshape(-1, self._length, self._inner).swapaxes(1, 2)
        return np.ascontiguousarray(x).reshape(-1, self._length)

    def _flat(self, rows: np.ndarray) -> np.ndarray:
        """Return what belongs to rows in the order of elements."""
        if self._inner > 1:
            rows = rows.reshape(-1, self._inner, self._length).swapaxes(1, 2)
        return rows.reshape(-1)


def choice_by(ranks: Callable[[np.ndarray], np.ndarray], bounds: np.ndarray) -> Choose:
    """Return what chooses by ranks.

    Args:
        ranks: Finds those of values within rows.
        bounds: By rank, what numbers of the chosen are below.
    """
    return lambda values, numbers: numbers < bounds[ranks(values)]


def ranks_along(values: np.ndarray) -> np.ndarray:
    """Return the ranks along rows, [rows, length]; of equal values the first has the lowest."""
    order = _order(values)
    ranks = np.empty_like(order)
    steps = np.arange(values.shape[1])[None]
    np.put_along_axis(ranks, order, np.broadcast_to(steps, order.shape), axis=1)
    return ranks


def _order(values: np.ndarray) -> np.ndarray:
    """Return what sorts values that are not negative along rows, stably."""
    if values.dtype != np.float32:
        return np.argsort(values, axis=1, kind="stable")
    # numpy sorts numbers of 16 bits by their digits, a third of the time: by the low half first
    keys = np.ascontiguousarray(values).view(np.uint32)
    order = np.argsort(keys.astype(np.uint16), axis=1, kind="stable")
    high = np.take_along_axis((keys >> _HALF).astype(np.uint16), order, axis=1)
    return np.take_along_axis(order, np.argsort(high, axis=1, kind="stable"), axis=1)
