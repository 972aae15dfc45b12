"""A plan in numbers: what is read, fetched and written, what is copied, what nobody needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge.plan.files import load_spec_json
from shardmerge.plan.plan import Build, Plan, ShardJob
from shardmerge.plan.schedule import Exists


@dataclass(frozen=True)
class Amount:
    """A number of files and their bytes."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Totals:
    """What a whole plan moves.

    Args:
        read: Bytes that the jobs read from sources, made ones too, and stored task vectors.
        fetch: Files of the Hub that the models are made from and that are not here yet.
        present: Those that are.
        whole: Further files, fetched only where sources are benchmarked whole.
        made, deltas, models: Made sources, task vectors and shards to write.
        done: Of all of these, what is on disk already.
        disk: Bytes of disk that are needed at most beyond what is used now.
        kept: The same from the start, with nothing there.
        lean: The same if fetched files were deleted as soon as they are used.
        weights: Weight files of all sources.
        unread: Those of them that no job reads.
    """

    read: int
    fetch: Amount
    present: Amount
    whole: Amount
    made: Amount
    deltas: Amount
    models: Amount
    done: Amount
    disk: int
    kept: int
    lean: int
    weights: int
    unread: Amount


@dataclass(frozen=True)
class Shard:
    """A shard of a build.

    Args:
        number: From 1.
        job: That writes it.
        tensors: How many it has.
        copied: Path of the one source file that its tensors come from unchanged, or None.
    """

    number: int
    job: ShardJob
    tensors: int
    copied: str | None


def plan_totals(plan: Plan, exists: Exists = os.path.exists) -> Totals:
    """Return what a plan moves; files on disk are taken to be what they should be."""
    models = plan.shards
    jobs = [*plan.made.values(), *plan.deltas, *models]
    read = {path for job in (*plan.deltas, *models) for path in job.sources}
    for_made = {path for job in plan.made.values() for path in job.files}
    small = {path for build in plan.builds.values() for path in build.files.values()}
    fetched = {path: job.size for path, job in plan.fetches.items()}
    needed = {path: size for path, size in fetched.items() if path in read | small | for_made}
    written = {job.output: job.bytes_written for job in jobs}
    missing = {p: size for p, size in (needed | written).items() if not exists(p)}
    return Totals(
        read=sum(job.bytes_read for job in jobs),
        fetch=_amount(size for path, size in needed.items() if path in missing),
        present=_amount(size for path, size in needed.items() if path not in missing),
        whole=_amount(size for p, size in fetched.items() if p not in needed and not exists(p)),
        made=_amount(job.bytes_written for job in plan.made.values()),
        deltas=_amount(job.bytes_written for job in plan.deltas),
        models=_amount(job.bytes_written for job in models),
        done=_amount(size for path, size in written.items() if path not in missing),
        disk=plan.schedule.peak(exists) + plan.room.bytes,
        kept=plan.schedule.peak() + plan.room.bytes,
        lean=plan.lean + plan.room.bytes,
        weights=len(read | set(plan.unread)),
        unread=_amount(plan.unread.values()),
    )


def shards(build: Build) -> list[Shard]:
    """Return a build's shards with what its jobs' specifications tell."""
    return [_shard(number, job) for number, job in enumerate(build.shards, 1)]


def _shard(number: int, job: ShardJob) -> Shard:
    # The raw JSON, since a mixture of experts has many thousand tensors.
    tensors = load_spec_json(job.digest)["tensors"]
    verbatim = len(job.sources) == 1 and not job.deltas and all(map(_is_copy, tensors))
    return Shard(number, job, len(tensors), job.sources[0] if verbatim else None)


def _is_copy(tensor: Mapping[str, Any]) -> bool:
    expression = tensor["expression"]
    return expression["op"] == "source" and expression["dtype"] == tensor["dtype"]


def _amount(sizes: Iterable[int]) -> Amount:
    sizes = list(sizes)
    return Amount(len(sizes), sum(sizes))
