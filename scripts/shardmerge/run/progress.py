"""How far a job is, in its log: what a run's display shows of it."""

from __future__ import annotations

import time

from shardmerge.run.cli import say

#: Seconds between two lines.
_APART = 5


class CountProgress:
    """Prints every few seconds how much of how much is done."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Take how much of how much is done."""
        if self._is_due(time.monotonic()):
            say(f"{done} of {total} ({100 * done // total} %)")

    def _is_due(self, now: float, *, last: bool = False) -> bool:
        """Whether it is time for a line, after which it is not for a while."""
        if not last and now - self._last < _APART:
            return False
        self._last = now
        return True


class ShardProgress(CountProgress):
    """Prints a line every few seconds, and at the end.

    Args:
        name: Of the shard.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._start = name, self._last

    def __call__(self, done: int, total: int) -> None:
        """Take how many bytes of how many are written."""
        now = time.monotonic()
        if not self._is_due(now, last=done >= total):
            return
        rate = done / max(now - self._start, 1e-9) / 1e6
        share = 100 * done // max(total, 1)
        say(
            f"{self._name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({share} %), "
            f"{rate:,.0f} MB/s"
        )
