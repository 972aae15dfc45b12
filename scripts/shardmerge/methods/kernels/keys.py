"""Keys of random streams, and their numbers by numpy: ``rng`` has the same for torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardmerge.base.digest import digest

#: Numbers of 32 bits in the output for one counter.
DRAWS = 8
Key = tuple[int, int]


@dataclass(frozen=True)
class RandomStream:
    """The numbers of a random stream, 32 bits for each element of a tensor.

    Args:
        key: Of the stream.
    """

    key: Key

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the numbers of consecutive elements, uint32 [count]."""
        return draws(self.key, first, count)


def stream_key(seed: int, stage: str, tensor: str, model: str) -> Key:
    """Return the 128-bit key of the stream for one model's part of one tensor."""
    text = digest([seed, stage, tensor, model])
    return int(text[:16], 16), int(text[16:32], 16)


def draws(key: Key, first: int, count: int) -> np.ndarray:
    """Return part of a stream as numbers of 32 bits, uint32 [count].

    Args:
        key: Of the stream.
        first: Index of the first number.
        count: How many.
    """
    counter, skip = divmod(first, DRAWS)
    return words(key, counter, -(-(skip + count) // DRAWS)).view("<u4")[skip : skip + count]


def words(key: Key, first: int, blocks: int) -> np.ndarray:
    """Return the 64-bit words for ``blocks`` counters from ``first``, uint64 [4 * blocks]."""
    # NumPy increments its counter before it draws.
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=(first - 1) % (1 << 256))
    return generator.random_raw(4 * blocks)
