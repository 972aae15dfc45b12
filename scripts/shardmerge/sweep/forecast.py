"""What a sweep takes, told before it begins: jobs, bytes, and time by what was measured."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from shardmerge.base.errors import UserError
from shardmerge.plan.paths import record_path
from shardmerge.plan.plan import Build, Plan
from shardmerge.plan.records import load_record
from shardmerge.sweep.sweeps import Sweep

#: Jobs of a trial besides its shards and small files: measured, settled.
_OWN_JOBS = 2
#: Jobs of a sweep as a whole: tables, what is kept, pictures.
_WHOLE_JOBS = 3
#: Configuration and recipe, made for every model.
_MADE_FILES = 1


@dataclass(frozen=True)
class Speeds:
    """What earlier jobs took.

    Args:
        merge: Bytes a second that a merge job reads and writes, None if none ran.
        measure: Seconds that it takes to measure a model, None if none was measured.
    """

    merge: float | None
    measure: float | None


@dataclass(frozen=True)
class Forecast:
    """What is left of a sweep.

    Args:
        trials: How many it has.
        measured: How many of them are measured.
        jobs: That are still to run.
        read, written: Bytes that its merges still move.
        seconds: Of all these jobs one after the other, None where nothing was measured so far.
    """

    trials: int
    measured: int
    jobs: int
    read: int
    written: int
    seconds: float | None


def forecast(sweep: Sweep, plan: Plan, results: str, speeds: Speeds) -> Forecast:
    """Return what is left of a sweep.

    Args:
        sweep: The sweep.
        plan: That has its trials.
        results: The folder of results.
        speeds: From ``measured_speeds``.
    """
    left = [c for c in sweep.built if not Path(sweep.settled(results, c.name)).exists()]
    builds = [plan.builds[sweep.build(candidate.name)] for candidate in left]
    shards = [job for build in builds for job in build.shards]
    read = sum(job.bytes_read for job in shards)
    written = sum(job.bytes_written for job in shards)
    seconds = None
    if speeds.merge and speeds.measure:
        seconds = (read + written) / speeds.merge + len(left) * speeds.measure
    jobs = sum(map(_jobs, builds)) + _WHOLE_JOBS
    done = len(sweep.built) - len(left)
    return Forecast(len(sweep.candidates), done, jobs, read, written, seconds)


def _jobs(build: Build) -> int:
    index = 1 if len(build.shards) > 1 else 0
    copied = len(build.files.keys() - {"config.json"})
    return len(build.shards) + index + copied + _MADE_FILES + _OWN_JOBS


def measured_speeds(plan: Plan, benchmarks: Path) -> Speeds:
    """Return the speeds of earlier jobs: of the plan's merges, of all models that were measured.

    Args:
        plan: The plan.
        benchmarks: Folder of Snakemake's own measurements.
    """
    records = [Path(record_path(job.output)) for job in plan.shards]
    moved, took = 0, 0.0
    for path in records:
        if path.is_file():
            with contextlib.suppress(UserError):
                record = load_record(path)
                moved += record.bytes_read + record.bytes_written
                took += record.seconds.get("total", 0.0)
    times = _seconds(benchmarks.glob("measure_trial/*.tsv")) or _seconds(
        benchmarks.glob("run_tasks/*.tsv")
    )
    return Speeds(moved / took if took else None, median(times) if times else None)


def _seconds(paths: Iterable[Path]) -> Sequence[float]:
    """Return the seconds in Snakemake's tables; what is no such table is passed over."""
    found = []
    for path in sorted(paths):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, csv.Error):
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [float(row["s"]) for row in csv.DictReader(lines, delimiter="\t")]
    return found
