"""Progress in bytes and rate, as lines for a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from shardmerge.base.text import human_bytes, human_time


class Meter:
    """Says every few seconds how far a transfer is.

    Args:
        name: What is transferred.
        total: Its bytes.
        say: Receives the lines, or None.
        every: Seconds between lines.
    """

    def __init__(
        self, name: str, total: int, say: Callable[[str], None] | None, every: float = 5.0
    ) -> None:
        self._name, self._total, self._every = name, total, every
        self._say = say or (lambda line: None)
        self._began = self._last = time.monotonic()
        self._moved = self._moved_last = 0

    @property
    def moved(self) -> int:
        """Bytes that have been transferred since the meter was made."""
        return self._moved

    @property
    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self._began

    def say(self, line: str) -> None:
        """Say a line about this transfer now."""
        self._say(f"{self._name}: {line}")

    def add(self, count: int, position: int) -> None:
        """Count transferred bytes.

        Args:
            count: Bytes that have come.
            position: Bytes of the whole that are there now.
        """
        self._moved += count
        now = time.monotonic()
        if now - self._last < self._every:
            return
        rate = (self._moved - self._moved_last) / (now - self._last)
        left = f", {human_time((self._total - position) / rate)} left" if rate else ""
        self.say(
            f"{human_bytes(position)} of {human_bytes(self._total)} "
            f"({100 * position / max(1, self._total):.0f} %), {human_bytes(rate)}/s{left}"
        )
        self._last, self._moved_last = now, self._moved
