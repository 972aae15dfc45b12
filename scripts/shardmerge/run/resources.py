"""What jobs ask a scheduler for, from the bytes that they move."""

from __future__ import annotations


def megabytes(count: int, spare: int = 0) -> int:
    """Return bytes as whole megabytes, rounded up, at least 1, and some more.

    Args:
        count: Bytes.
        spare: Megabytes to add.
    """
    return max(1, -(-count // 1_000_000)) + spare


def minutes(count: int, megabytes_per_second: float, attempt: int) -> int:
    """Return the run time to ask for when so many bytes must move; more on every attempt.

    Args:
        count: Bytes.
        megabytes_per_second: Speed of disk or network.
        attempt: Counted from 1.
    """
    return attempt * (5 + int(count / megabytes_per_second / 60e6))
