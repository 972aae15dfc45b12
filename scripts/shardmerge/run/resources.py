"""What jobs ask a scheduler for, from the bytes that they move."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardmerge.plan.plan import ShardJob

#: The part of a machine's memory that threads may take which nobody has asked for.
_SHARE = 0.5


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


def fixed_threads(asked: int | str) -> int:
    """Return the threads of jobs whose bits may depend on their number.

    Args:
        asked: ``resources.merge_threads`` of the configuration.
    """
    return 1 if asked == "auto" else int(asked)


def threads_of_merges(
    asked: int | str, outputs: Iterable[str], cores: int | None
) -> Callable[[ShardJob], int]:
    """Return what tells the compute threads of a job that writes a shard.

    ``auto`` shares the cores that would have no shard to build among those that are built, where
    tensors are made ready ahead and memory is enough.

    Args:
        asked: ``resources.merge_threads`` of the configuration.
        outputs: Paths of all shards of the run.
        cores: Of this machine that jobs may use; None if they run elsewhere.
    """
    if asked != "auto" or not cores:
        return lambda job: fixed_threads(asked)

    @functools.cache
    def missing() -> int:
        return max(1, sum(not os.path.exists(path) for path in outputs))

    def threads(job: ShardJob) -> int:
        if not job.ahead:  # most jobs: nothing is looked up for them
            return 1
        together, most = min(missing(), cores), cores // missing()
        memory = _SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        fitting = (n for n in range(most, 1, -1) if together * job.memory_for(n) <= memory)
        return next(fitting, 1)

    return threads
