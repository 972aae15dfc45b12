"""Infinite and NaN values that are merged though no source has one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def canonicalize_nan(out: torch.Tensor, views: Sequence[torch.Tensor]) -> int:
    """Return how many results are infinite or NaN where no view is; make NaNs all one.

    Processors differ in the bits of a NaN that they make.

    Args:
        out: Results, one-dimensional; changed in place.
        views: The same elements of what they are made from.
    """
    bad = ~out.isfinite()
    if not bad.any():
        return 0
    for view in views:
        bad &= view.isfinite()
    out.masked_fill_(out.isnan(), math.nan)
    return int(bad.sum())
