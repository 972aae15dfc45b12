"""Runs on one results folder: one at a time, and jobs know whose they are.

A run whose head process is killed leaves jobs that still run or wait in a cluster's queue. The next
run submits jobs for the same outputs. Claims keep the two from writing at once; what is here keeps
either from throwing away what the other has finished.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from shardmerge.base import claims
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_text
from shardmerge.plan.paths import record_path
from shardmerge.plan.plan import FetchJob, ShardJob
from shardmerge.plan.records import load_record

#: Tells a job which run it belongs to; the cluster passes it on from the head.
RUN_VARIABLE = "SHARDMERGE_RUN"
_RUN = Path(".shardmerge/run")


def claim_path(results: str | os.PathLike[str]) -> Path:
    """Return what a run claims of a results folder."""
    return Path(results) / "run"


def begin(results: str | os.PathLike[str], say: claims.Say | None = None) -> None:
    """Make this process the one run on a results folder, until it ends.

    Args:
        results: The folder.
        say: Takes a line where it watches whether another run still lives.

    Raises:
        UserError: If another run is at it: who, where, since when.
    """
    try:
        claims.hold(claim_path(results), say=say, wait=False)
    except claims.HeldError as held:
        raise UserError(
            f"{held.owner} is running shardmerge on this folder",
            str(results),
            "Wait for that run, or give this one a folder of its own with the key `results`. "
            f"A run that was killed elsewhere is forgotten {claims.minutes_to_stale()} minutes "
            "after its last sign of life.",
        ) from None
    os.environ[RUN_VARIABLE] = name = secrets.token_hex(6)
    write_text(_RUN, name + "\n")


def is_replaced() -> bool:
    """Return whether this job's run was replaced by a later one, which makes its outputs anew."""
    mine = os.environ.get(RUN_VARIABLE)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return mine is not None and _RUN.read_text(encoding="utf-8").strip() != mine
    return False


def made_meanwhile(job: FetchJob | ShardJob, say: claims.Say) -> bool:
    """Return whether another job has made this job's output since its run began.

    Waits while another process is writing it. Snakemake deletes a job's output before it runs the
    job's command, so this must be asked earlier.

    Args:
        job: Of a fetched file, an output shard or a shard of task vectors.
        say: Takes a line when it waits.
    """
    output = Path(job.output)
    claims.wait_for(output, say)
    with contextlib.suppress(OSError):
        if output.stat().st_mtime <= _RUN.stat().st_mtime:
            return False
        if isinstance(job, FetchJob):
            return output.stat().st_size == job.size
        return is_made(output, record_path(job.output), job.digest)
    return False


def is_made(output: str | os.PathLike[str], record: str | os.PathLike[str], spec: str) -> bool:
    """Return whether a shard is there, made from that specification as its record says.

    Args:
        output: The shard.
        record: What the job that made it wrote.
        spec: Digest of the specification.
    """
    try:
        told = load_record(record)
        return told.spec == spec and Path(output).stat().st_size == told.size
    except (UserError, OSError):
        return False
