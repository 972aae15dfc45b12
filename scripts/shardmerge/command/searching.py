"""The command `search`: one run of Snakemake for each generation, until the search is done."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.command import workflow
from shardmerge.run.cli import say
from shardmerge.run.searching import FAILED, TOLD

#: A run of Snakemake that ended by itself, as some of its jobs failed.
_JOBS_FAILED = 1
#: Runs the workflow with further variables of the environment, and returns the exit status.
Runner = Callable[[Mapping[str, str]], int]


def search(args: argparse.Namespace, further: Sequence[str]) -> None:
    """Run generation after generation; of a dry run, the next one only.

    Args:
        args: As parsed.
        further: Words for Snakemake as they are.

    Raises:
        UserError: If it is not clear what to run, or there is no workflow to run.
        SystemExit: With Snakemake's status, if a run is ended or nothing could be measured.
    """
    own = [] if args.dry_run or "--keep-going" in further or "-k" in further else ["--keep-going"]
    words = workflow.command(args, [*further, *own])
    environment = workflow.ready(words)
    run = runner(words, environment)
    status = run_once(run)[0] if args.dry_run else run_all(run)
    if status:
        sys.exit(status)


def runner(words: Sequence[str], environment: Mapping[str, str]) -> Runner:
    """Return what runs Snakemake with words, and further variables of the environment."""

    def run(more: Mapping[str, str]) -> int:
        own = {key: value for key, value in os.environ.items() if key not in (TOLD, FAILED)}
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
        status, told = run_once(run, failed=failed)
        if told and told == before:
            raise UserError(
                f"{next(iter(told))}: the last run measured nothing that the search takes",
                hint="Delete the results of its trials in `benchmarks` of the results.",
            )
        before = None if status else told
        if status not in (0, _JOBS_FAILED) or not told:
            return status
        if all(search["finished"] for search in told.values()):
            return status
        # a run that ends with failed jobs is followed by one that tells so, and stops if it must
        failed = status == _JOBS_FAILED
        for name, search in told.items():
            say(f"{name}: generation {search['generation']}, {search['trials']} trials asked for")


def run_once(run: Runner, *, failed: bool = False) -> tuple[int, Mapping[str, Any]]:
    """Run the workflow once; return its status, and how its searches stand if it told so.

    Args:
        run: Runs it.
        failed: Whether jobs of the run before failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "search.json")
        status = run({TOLD: str(path)} | ({FAILED: "1"} if failed else {}))
        return status, json.loads(path.read_text()) if path.is_file() else {}
