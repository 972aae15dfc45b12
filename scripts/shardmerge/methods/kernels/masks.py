"""Masks of a tensor's elements, a bit of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BitMask:
    """Tells whether elements are chosen: (first, count) -> bool [count].

    Args:
        bits: Of the elements, 8 a byte, the first in the lowest bit.
    """

    bits: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> BitMask:
        """Return that of a mask, bool [elements]."""
        return cls(np.packbits(mask, bitorder="little"))

    def __call__(self, first: int, count: int) -> np.ndarray:
        part, skip = self.bits[first // 8 : -(-(first + count) // 8)], first % 8
        return np.unpackbits(part, bitorder="little")[skip : skip + count].view(bool)
