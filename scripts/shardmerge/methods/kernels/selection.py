"""Exact order statistics of tensors too big to sort, in passes over blocks.

The bits of a floating-point number that is not negative, read as an integer, order as the number
does. A radix selection counts 16 bits a pass, so two passes find any rank of float32 values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

#: Starts a pass: yields the values' keys, int64 [elements] blocks, in order.
Keys = Callable[[], Iterator[torch.Tensor]]

_DIGIT = 16


def sort_keys(x: torch.Tensor, descending: bool = False) -> torch.Tensor:
    """Return int64 keys that order as values that are not negative do.

    Args:
        x: float32 or float64, no element below 0 (NaN counts as the greatest).
        descending: Reverse the order, equal elements still by index.
    """
    if x.dtype == torch.float32:
        keys, greatest = x.view(torch.int32).long(), (1 << 31) - 1
    else:
        keys, greatest = x.view(torch.int64), (1 << 63) - 1
    keys = keys & greatest  # NaN may have a sign
    return greatest - keys if descending else keys


def key_values(keys: Sequence[int], dtype: torch.dtype) -> list[float]:
    """Return the values of ascending keys."""
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    return torch.tensor(keys, dtype=torch.int64).to(bits).view(dtype).tolist()


def order_statistics(keys: Keys, dtype: torch.dtype, ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Return the keys that have some ranks, each with the number of keys below it.

    Args:
        keys: Starts a pass over them.
        dtype: Of the values that they were made from.
        ranks: From 0, each less than the number of keys.
    """
    shifts = range(torch.finfo(dtype).bits - _DIGIT, -1, -_DIGIT)
    found = [(0, 0)] * len(ranks)
    for shift in shifts:
        prefixes = sorted({prefix for prefix, _ in found})
        counts = {prefix: torch.zeros(1 << _DIGIT, dtype=torch.int64) for prefix in prefixes}
        for block in keys():
            for prefix in prefixes:
                here = block if shift == shifts[0] else block[block >> (shift + _DIGIT) == prefix]
                digits = (here >> shift) & ((1 << _DIGIT) - 1)
                counts[prefix] += torch.bincount(digits, minlength=1 << _DIGIT).cpu()
        below = {prefix: count.cumsum(0) for prefix, count in counts.items()}
        for index, (rank, (prefix, less)) in enumerate(zip(ranks, found, strict=True)):
            digit = int(torch.searchsorted(below[prefix], rank - less, right=True))
            less += int(below[prefix][digit - 1]) if digit else 0
            found[index] = (prefix << _DIGIT | digit, less)
    return found


@dataclass(frozen=True)
class RankBand:
    """The elements whose rank lies in [start, stop); of equal ones the earlier ranks lower.

    Args:
        start, stop: The ranks.
        low, high: Key with rank ``start`` and number of keys below it; the same for the last.
    """

    start: int
    stop: int
    low: tuple[int, int]
    high: tuple[int, int]

    @classmethod
    def find(cls, keys: Keys, dtype: torch.dtype, start: int, stop: int) -> RankBand:
        """Return the band; ``start`` must be less than ``stop``."""
        return cls(start, stop, *order_statistics(keys, dtype, [start, stop - 1]))

    def masks(self, keys: Keys) -> Iterator[torch.Tensor]:
        """Yield for each block of keys which of its elements are in the band."""
        seen = [0, 0]
        for block in keys():
            chosen = (block > self.low[0]) & (block < self.high[0])
            for side, (key, less) in enumerate((self.low, self.high)):
                equal = block == key
                rank = equal.cumsum(0) + (less + seen[side] - 1)
                seen[side] += int(equal.sum())
                chosen |= equal & (rank >= self.start) & (rank < self.stop)
            yield chosen
