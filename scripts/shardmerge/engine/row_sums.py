"""Weighted sums of a matrix's rows, while the rows pass by: embeddings of tokens that it lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from shardmerge.algebra.transplant import NO_ROW
from shardmerge.base.errors import UserError

#: Elements of sums that a row is added to at a time.
_AT_ONCE = 1 << 18


class RowSummer:
    """Sums that are made in the order of the rows, so that no size of a band changes their bits.

    Args:
        rows: [count, most], which rows make each sum, NO_ROW where there are fewer.
        weights: The same, their weights.
        shape: Of the matrix; what follows its rows counts as one width.
        dtype: In which products and sums are made.

    Raises:
        UserError: If a row is none of the matrix, or a weight is not finite.
    """

    def __init__(
        self, rows: torch.Tensor, weights: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.width = math.prod(shape[1:])
        numbers, used = rows.long(), rows != NO_ROW
        bad = used & ((numbers < 0) | (numbers >= shape[0]))
        if bool(bad.any()) or not bool(weights[used].isfinite().all()):
            raise UserError(
                "the made rows of embeddings are not of this model",
                None,
                "Delete the file below results/transplants, and run the workflow again.",
            )
        # terms by row, then by sum
        sums = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(rows)[used]
        found, order = torch.sort(numbers[used], stable=True)
        self._sums, self._weights = sums[order], weights[used][order].to(dtype)
        self._rows, counts = torch.unique_consecutive(found, return_counts=True)
        self._ends = counts.cumsum(0).tolist()
        self._begun = [0, *self._ends[:-1]]
        self._numbers = self._rows.tolist()
        self._next = 0
        self._step = max(_AT_ONCE // max(self.width, 1), 1)
        # -0 + x is x, whatever its sign
        self._total = torch.full((len(rows), self.width), -0.0, dtype=dtype, device=rows.device)
        self._total[~used.any(dim=1)] = 0.0

    def bands(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield (first row, number of rows) of what ``add`` wants, a few elements at a time."""
        most = max(length // max(self.width, 1), 1)
        while self._next < len(self._numbers):
            first, end = self._numbers[self._next], self._next
            while end < len(self._numbers) and self._numbers[end] - first < most:
                end += 1
            yield first, self._numbers[end - 1] - first + 1

    def add(self, first: int, values: torch.Tensor) -> None:
        """Add what rows from a first one on contribute; ``values`` is [rows, width]."""
        while self._next < len(self._numbers):
            row = self._numbers[self._next] - first
            if row >= len(values):
                break
            begin, end = self._begun[self._next], self._ends[self._next]
            value = values[row].to(self._total.dtype)
            for place in range(begin, end, self._step):
                term = slice(place, min(place + self._step, end))
                self._total[self._sums[term]] += self._weights[term].unsqueeze(1) * value
            self._next += 1

    @property
    def result(self) -> torch.Tensor:
        """The sums, flattened."""
        return self._total.view(-1)
