"""Random numbers that depend on what they are for, not on when or where they are drawn.

Philox4x64-10, a counter-based generator: element ``i`` of a stream is a pure function of
``(key, i)``, so a block, a shard, a device or a thread count changes nothing.

Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405.
"""

from __future__ import annotations

import numpy as np
import torch

from shardmerge.methods.kernels.keys import DRAWS, Key
from shardmerge.methods.kernels.keys import words as numpy_words

_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_WORD = (1 << 64) - 1
_HALF = (1 << 32) - 1


def uniform(key: Key, start: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return part of a stream of numbers that are uniform in [0, 1).

    Args:
        key: Of the stream.
        start: Index of the first number in the stream.
        count: How many numbers.
        device: Where they are needed; the numbers are the same on all.

    Returns:
        float64 tensor [count], multiples of 2**-32.
    """
    first, skip = divmod(start, DRAWS)
    blocks = -(-(skip + count) // DRAWS)
    if torch.device(device).type == "cpu":
        words = torch.from_numpy(numpy_words(key, first, blocks).view(np.int64))
    else:
        words = words_torch(key, first, blocks, device)
    draws = torch.stack((words & _HALF, (words >> 32) & _HALF), dim=1).reshape(-1)
    return draws[skip : skip + count].double().mul_(2.0**-32)


def words_torch(
    key: Key, first: int, blocks: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the same words as NumPy's generator, by arithmetic that any device has.

    Args:
        key: Of the stream.
        first: The first counter.
        blocks: How many counters.
        device: Where to compute.

    Returns:
        int64 tensor [4 * blocks], each the bits of an unsigned word.
    """
    counter = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    x0, x1, x2, x3 = counter, *(torch.zeros_like(counter) for _ in range(3))
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(x0, _MULTIPLIERS[0])
        high1, low1 = _multiply(x2, _MULTIPLIERS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ _signed(k0), low1, high0 ^ x3 ^ _signed(k1), low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack((x0, x1, x2, x3), dim=1).reshape(-1)


def _multiply(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and the low word of unsigned 64-bit products, from 32-bit halves."""
    x_low, x_high = x & _HALF, (x >> 32) & _HALF
    f_low, f_high = factor & _HALF, factor >> 32
    low_low, low_high, high_low = x_low * f_low, x_low * f_high, x_high * f_low
    carry = ((low_low >> 32) & _HALF) + (low_high & _HALF) + (high_low & _HALF)
    high = x_high * f_high + ((low_high >> 32) & _HALF) + ((high_low >> 32) & _HALF) + (carry >> 32)
    return high, x * _signed(factor)


def _signed(word: int) -> int:
    """Return the signed number with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word
