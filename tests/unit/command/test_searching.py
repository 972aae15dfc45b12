"""The command `search`: which run follows which, with a stand-in for Snakemake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shardmerge.base.errors import UserError
from shardmerge.command.searching import Ended, run_all, run_once, run_sweeps
from shardmerge.run.drive import JOBS_FAILED, STATE, jobs_failed_path

FAILED = 1
#: A run that ended with the same status, and has not tried all its jobs.
ENDED_EARLY = "1"


def end(status: Any, more: Mapping[str, str]) -> int:
    """Return the status of a run, which tells so if its jobs failed."""
    if status == FAILED:
        jobs_failed_path(more[STATE]).touch()
    return int(status)


class Runs:
    """Ends runs as told.

    Args:
        ends: Status of each run, and whether the search is finished then; None: it tells nothing.
    """

    def __init__(self, *ends: tuple[Any, bool | None]) -> None:
        self.ends = list(ends)
        self.state: list[str] = []
        self.failed: list[bool] = []

    def __call__(self, more: Mapping[str, str]) -> int:
        status, finished = self.ends.pop(0)
        self.failed.append(JOBS_FAILED in more)
        if finished is not None:
            told = {"own": {"generation": 0, "finished": finished, "trials": 4}}
            told["own"]["state"] = self.state.pop(0) if self.state else str(len(self.ends))
            Path(more[STATE]).write_text(json.dumps(told))
        return end(status, more)


def test_until_it_is_finished() -> None:
    runs = Runs((0, False), (0, False), (0, True))
    assert run_all(runs) == 0
    assert runs.failed == [False, False, False]


def test_failed_jobs_are_told_once() -> None:
    runs = Runs((1, False), (0, False), (0, True))
    assert run_all(runs) == 0
    assert runs.failed == [False, True, False]


def test_a_fault_of_all_trials_stops_it() -> None:
    runs = Runs((1, False), (1, None))
    assert run_all(runs) == 1
    assert runs.ends == []


def test_a_run_that_brings_it_no_further_ends_it() -> None:
    runs = Runs((0, False), (0, False), (0, False))
    runs.state = ["a", "b", "b"]
    with pytest.raises(UserError, match="measured nothing that the search takes"):
        run_all(runs)


def test_ended_from_outside() -> None:
    for status in (-9, 130, 143):
        assert run_all(Runs((status, False))) == status


def test_what_was_never_tried_has_not_failed() -> None:
    """A lock, a full disk, Ctrl-C: Snakemake's status is the same as that of failed jobs."""
    runs = Runs((0, False), (ENDED_EARLY, False))
    assert run_all(runs) == 1
    assert runs.failed == [False, False]


def test_tables_that_fail_end_it() -> None:
    assert run_all(Runs((1, True))) == 1


class SweepRuns:
    """Ends runs of a sweep as told: status, trials that are measured and failed, None: nothing."""

    def __init__(self, *ends: tuple[Any, int, int, bool]) -> None:
        self.ends, self.failed = list(ends), []  # type: ignore[var-annotated]

    def __call__(self, more: Mapping[str, str]) -> int:
        status, measured, failed, finished = self.ends.pop(0)
        self.failed.append(JOBS_FAILED in more)
        told = {"own": {"measured": measured, "failed": failed, "finished": finished}}
        Path(more[STATE]).write_text(json.dumps(told))
        return end(status, more)


class TestSweeps:
    def test_a_good_run_is_all(self) -> None:
        runs = SweepRuns((0, 0, 0, False))
        assert (run_sweeps(runs), runs.failed) == (0, [False])

    def test_trials_behind_a_failed_one_are_next(self, capsys: pytest.CaptureFixture[str]) -> None:
        runs = SweepRuns((1, 0, 0, False), (1, 3, 1, False), (0, 5, 2, False))
        assert (run_sweeps(runs), runs.failed) == (0, [False, True, True])
        assert "own: 2 trials failed" in "".join(capsys.readouterr())

    def test_a_fault_of_all_ends_it(self) -> None:
        runs = SweepRuns(*((1, 4, n, False) for n in range(9)))
        assert run_sweeps(runs) == 1
        assert len(runs.failed) == 4

    def test_tables_that_fail_end_it(self) -> None:
        assert run_sweeps(SweepRuns((1, 0, 0, False), (1, 5, 1, True))) == 1

    def test_ended_from_outside(self) -> None:
        assert run_sweeps(SweepRuns((130, 0, 0, False))) == 130

    def test_what_was_never_tried_has_not_failed(self) -> None:
        runs = SweepRuns((1, 1, 0, False), (ENDED_EARLY, 2, 1, False))
        assert (run_sweeps(runs), runs.failed) == (1, [False, True])


def test_once() -> None:
    assert run_once(Runs((0, None))) == Ended(0, {}, failed=False)
