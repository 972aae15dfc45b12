"""Weights of trials: they go once a trial is measured, and what is kept is there at the end.

Only a file that is byte for byte what our job wrote is deleted. What is kept but not there is built
again and has the same bytes, or it is an error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from shardmerge.algebra.spec import files_of
from shardmerge.base import claims
from shardmerge.base.claims import Say
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.base.identities import Identities
from shardmerge.base.text import human_bytes
from shardmerge.benchmark.trials import TrialSet
from shardmerge.check.shard import check_shard
from shardmerge.engine import build_shard
from shardmerge.engine.watch import Watch
from shardmerge.plan.files import IDENTITIES, load_spec
from shardmerge.plan.paths import record_path
from shardmerge.plan.plan import Build, Plan, ShardJob
from shardmerge.plan.records import is_as_recorded, load_record
from shardmerge.sweep.best import best_trials
from shardmerge.sweep.failures import drop_file
from shardmerge.sweep.scratch import leave_scratch
from shardmerge.sweep.sweeps import Sweep

#: Path of a source's file by model and name.
_Places = Mapping[tuple[str, str], str]


def kept_trials(sweep: Sweep, plan: Plan, points: TrialSet) -> tuple[str, ...]:
    """Return the names of the trials whose weights stay, as far as the disk allows.

    Args:
        sweep: The sweep.
        plan: That has its trials.
        points: What was measured so far.
    """
    if sweep.keep != "best":
        return tuple(c.name for c in sweep.final) if sweep.keep == "all" else ()
    kept, free = [], plan.room.kept
    for name in best_trials(sweep, points):
        size = plan.builds[sweep.build(name)].bytes_written
        if free is None or size <= free:
            kept.append(name)
            free = None if free is None else free - size
    return tuple(kept)


def settle(
    sweep: Sweep, plan: Plan, points: TrialSet, trial: str, say: Say, stay: Collection[str] = ()
) -> None:
    """Let go of weights that are not among the best, now that a trial is measured.

    Args:
        sweep: The sweep.
        plan: That has its trials.
        points: What was measured of trials that are settled, and of this one.
        trial: Its name.
        say: Takes a line for what is deleted.
        stay: Trials that are to be measured once more; ``settling.Settled`` names them.
    """
    ended = [t.name for t in points.trials if t.status in ("done", "stopped")]
    done = [name for name in ended if name not in stay]
    kept = () if sweep.scratch and sweep.keep != "all" else kept_trials(sweep, plan, points)
    for name in done:
        build = plan.builds[sweep.build(name)]
        if name not in kept and (freed := drop(build, say)):
            say(f"deleted the weights of trial {name}, {human_bytes(freed)}")
        if name == trial and name not in kept:
            leave_scratch(model_folder(build))


def drop(build: Build, say: Say) -> int:
    """Delete a trial's weights that are as our jobs wrote them; return their bytes."""
    return sum(drop_file(Path(job.output), say) for job in build.shards)


def restore(build: Build, plan: Plan, say: Say) -> list[dict]:
    """Make sure that a trial's weights are there and right, building what is missing.

    Args:
        build: The trial.
        plan: Its plan.
        say: Takes a line for each shard.

    Returns:
        What the check of each shard found.

    Raises:
        UserError: If a file is in the way, or what is built again has other bytes than before.
    """
    leave_scratch(model_folder(build))
    places = _places(plan, build)
    return [_restored(job, places, say) for job in build.shards]


def _restored(job: ShardJob, places: _Places, say: Say) -> dict:
    path, record = Path(job.output), Path(record_path(job.output))
    spec = load_spec(job.digest)
    inputs = {key: Path(places[key]) for key in spec.required_files()}
    watch = Watch(Identities(IDENTITIES))
    with claims.claimed(path):
        if os.path.lexists(path):
            if not is_as_recorded(path, record):
                hint = "Delete it, or move it away, and run the workflow again."
                raise UserError("is not as the job of this workflow wrote it", str(path), hint)
        else:
            say(f"building {path} again")
            made = build_shard(spec, inputs, path, watch=watch)
            if record.is_file() and (told := load_record(record)).spec == job.digest:
                if told.sha256 != made.sha256:
                    path.unlink()
                    raise UserError("came out otherwise than before", str(path))
            else:
                write_json(record, {"spec": job.digest, **made.to_json()})
        return check_shard(spec, path, inputs, (), load_record(record), watch)


def _places(plan: Plan, build: Build) -> _Places:
    """Return where the source files of a trial lie, those of stored task vectors too."""
    vectors = [job for job in plan.deltas if any(job.output in s.deltas for s in build.shards)]
    stored: set = set()
    found: dict[tuple[str, str], str] = {}
    for job in (*vectors, *build.shards):
        spec = load_spec(job.digest)
        own = () if job in vectors else stored
        found |= zip(files_of(spec.leaves(own)), job.sources, strict=True)
        if job in vectors:
            stored |= {tensor.expression for tensor in spec.tensors}
    return found


def model_folder(build: Build) -> Path:
    """Return the folder of a trial's model; a shard may lie in a folder within it."""
    before, _, _ = build.shards[0].output.rpartition(f"/{build.name}/model/")
    return Path(f"{before}/{build.name}/model")
