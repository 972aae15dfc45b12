"""How far a job is, in its log: what a run's display shows of it."""

from __future__ import annotations

import time

from shardmerge.run.cli import say


class ShardProgress:
    """Prints a line every few seconds, and at the end.

    Args:
        name: Of the shard.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Take how many bytes of how many are written."""
        now = time.monotonic()
        if done < total and now - self._last < 5:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-9) / 1e6
        share = 100 * done // max(total, 1)
        say(
            f"{self._name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({share} %), "
            f"{rate:,.0f} MB/s"
        )
