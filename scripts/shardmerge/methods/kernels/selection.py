"""Keys of torch's values, by which order statistics are found (``ranks``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sort_keys(x: torch.Tensor) -> torch.Tensor:
    """Return int64 keys that order as values that are not negative do.

    Args:
        x: float32 or float64, no element below 0 (NaN of either sign counts as the greatest).
    """
    if x.dtype == torch.float32:
        return x.view(torch.int32).long() & ((1 << 31) - 1)
    return x.view(torch.int64) & ((1 << 63) - 1)


def key_values(keys: Sequence[int], dtype: torch.dtype) -> list[float]:
    """Return the values of keys."""
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    return torch.tensor(keys, dtype=torch.int64).to(bits).view(dtype).tolist()
