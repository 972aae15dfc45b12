"""Where the time of the jobs goes, from their records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.report.canvas import BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE, SKY, WIDTH, figure
from shardmerge.report.words import human_bytes, human_seconds, plural

#: What a job is busy with, in the order in which it happens.
PHASES = {"start": GREY, "read": SKY, "compute": ORANGE, "write": BLUE, "hash": GREEN}
_OTHER = PURPLE
#: More shards than this are told by the slowest.
_MOST = 24
_BAR = 0.2


@dataclass(frozen=True)
class Timing:
    """What one job took.

    Args:
        name: Of its shard.
        seconds: Busy time of each phase, summed over threads.
        wall: Time from start to end, in seconds.
        read, written: Bytes.
        copy: Whether it only copied a file.
    """

    name: str
    seconds: Mapping[str, float]
    wall: float
    read: int
    written: int
    copy: bool


def timing(name: str, record: Mapping[str, Any]) -> Timing:
    """Return the timing in a job's record."""
    seconds = dict(record["seconds"])
    wall = seconds.pop("total")
    return Timing(
        name, seconds, wall, record["bytes_read"], record["size"], bool(record["whole_copy"])
    )
