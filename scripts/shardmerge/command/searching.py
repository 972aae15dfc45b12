"""The commands `search` and `sweep`: run after run of Snakemake, until all trials are seen to.

A search has a run for each generation. A sweep has one more wherever trials failed, for those that
waited for them. A trial has failed only if a run tells that jobs failed and no other could be run:
in one that ended early, trials were never tried.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.text import plural
from shardmerge.command import workflow
from shardmerge.run.cli import say
from shardmerge.run.drive import JOBS_FAILED, STATE, jobs_failed_path

#: Runs in a row of a sweep that measure nothing, after which it is no fault of single trials.
_PATIENCE = 3
#: Runs the workflow with further variables of the environment, and returns the exit status.
Runner = Callable[[Mapping[str, str]], int]


@dataclass(frozen=True)
class Ended:
    """How a run of the workflow ended.

    Args:
        status: Snakemake's.
        told: How its searches or sweeps stood when it began, by name; none if it told nothing.
        failed: Whether jobs failed, and all others were run that could be.
    """

    status: int
    told: Mapping[str, Any]
    failed: bool


def search(args: argparse.Namespace, further: Sequence[str]) -> None:
    """Run what a search or a sweep needs; of a dry run, the next run only.

    Args:
        args: As parsed.
        further: Words for Snakemake as they are.

    Raises:
        UserError: If it is not clear what to run, or there is no workflow to run.
        SystemExit: With Snakemake's status, if a run is ended or nothing could be measured.
    """
    own = [] if args.dry_run or "--keep-going" in further or "-k" in further else ["--keep-going"]
    # A lock of Snakemake's outlives a run that was killed. The claim on the results does not.
    own += [] if args.dry_run or "--nolock" in further else ["--nolock"]
    words = workflow.command(args, [*further, *own])
    environment = workflow.ready(words)
    run = runner(words, environment)
    drive = run_all if args.command == "search" else run_sweeps
    status = run_once(run).status if args.dry_run else drive(run)
    if status:
        sys.exit(status)


def runner(words: Sequence[str], environment: Mapping[str, str]) -> Runner:
    """Return what runs Snakemake with words, and further variables of the environment."""

    def run(more: Mapping[str, str]) -> int:
        own = {key: value for key, value in os.environ.items() if key not in (STATE, JOBS_FAILED)}
        command = [sys.executable, "-m", "snakemake", *words]
        process = subprocess.Popen(command, env={**own, **environment, **more})
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # Snakemake got it too, and ends its jobs first

    return run


def run_all(run: Runner) -> int:
    """Run generations until all searches are done; return the status of the last run.

    Trials that could not be measured are told to have failed, if other trials of their generation
    were measured. If none was, the fault is not theirs, and the search stops.

    Args:
        run: Runs the workflow once.

    Raises:
        UserError: If a run that ended well brought the search no further.
    """
    failed, before = False, None
    while True:
        ended = run_once(run, failed=failed)
        status, told = ended.status, ended.told
        if told and told == before:
            raise UserError(
                f"{next(iter(told))}: the last run measured nothing that the search takes",
                hint="Delete the results of its trials in `benchmarks` of the results.",
            )
        before = None if status else told
        if not told or (status and not ended.failed):
            return status
        if all(search["finished"] for search in told.values()):
            return status
        # a run that ends with failed jobs is followed by one that tells so, and stops if it must
        failed = ended.failed
        for name, search in told.items():
            say(f"{name}: generation {search['generation']}, {search['trials']} trials asked for")


def run_sweeps(run: Runner) -> int:
    """Run sweeps until no trial is left that can be measured; return the status of the last run.

    Args:
        run: Runs the workflow once.
    """
    failed, before, idle = False, None, 0
    while True:
        ended = run_once(run, failed=failed)
        status, told = ended.status, ended.told
        measured = sum(sweep["measured"] for sweep in told.values())
        idle = idle + 1 if measured == before else 0
        if not (ended.failed and told) or all(s["finished"] for s in told.values()):
            break
        if idle == _PATIENCE:
            say(f"no trial could be measured in {_PATIENCE} runs; the logs tell why")
            break
        failed, before = True, measured
        say("some trials failed; those that waited for them are next")
    for name, sweep in told.items():
        if sweep["failed"] and not status:
            say(f"{name}: {plural(sweep['failed'], 'trial')} failed; table.md tells which")
    return status


def run_once(run: Runner, *, failed: bool = False) -> Ended:
    """Run the workflow once, and return how it ended.

    Args:
        run: Runs it.
        failed: Whether jobs of the run before failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "search.json")
        status = run({STATE: str(path)} | ({JOBS_FAILED: "1"} if failed else {}))
        told = json.loads(path.read_text()) if path.is_file() else {}
        return Ended(status, told, jobs_failed_path(path).is_file())
