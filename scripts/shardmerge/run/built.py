"""What of a plan is there already, so that nothing deleted is asked for again in vain.

A temporary file that one shard needs again would, as an input, make Snakemake build everything
anew that ever read it. So a job whose output is there, made and checked to the plan, has no such
inputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.paths import check_record_path, record_path
from shardmerge.plan.plan import Plan, ShardJob


class Built:
    """The state of a plan's shards when a run begins.

    Args:
        plan: The plan.
        keep_sources: Whether fetched files stay.
        keep_deltas: Whether stored task vectors stay.
        gated: Whether downloads wait for checks; asked when needed.
        forced: Whether jobs run that need not, so that nothing counts as done; the same.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        keep_sources: bool,
        keep_deltas: bool,
        gated: Callable[[], bool] = lambda: True,
        forced: Callable[[], bool] = bool,
    ) -> None:
        self._plan = plan
        self._jobs = {job.output: job for job in (*plan.deltas, *plan.shards)}
        self._deltas = {job.output for job in plan.deltas}
        self._keeps = (keep_sources or not plan.fetches, keep_deltas or not plan.deltas)
        self._gated, self._forced = gated, forced
        self._found: dict[tuple[str, str], bool] = {}

    def to_make(self, job: ShardJob) -> ShardJob:
        """Return the job that writes a shard; without temporary inputs if that is done."""
        return self._without(job) if self._is_made(job.output) else job

    def to_check(self, job: ShardJob) -> ShardJob:
        """Return the job whose output a check reads; without temporary files if that is done."""
        return self._without(job) if self._is_checked(job.output) else job

    def to_read(self, job: MadeJob) -> tuple[str, ...]:
        """Return the files that are read for a made source; none if that is done."""
        done = os.path.exists(job.output) and not self._forced()
        return () if done and not self._keeps[0] else job.files

    @cached_property
    def _whole(self) -> set[str]:
        """Files that are needed for made sources, so that none can wait for work on another."""
        return {path for job in self._plan.made.values() for path in self.to_read(job)}

    def gate(self, path: str) -> list[str]:
        """Return the checks that must be done before a file is fetched, so that disk is free."""
        if path in self._whole:
            return []
        return [check_record_path(output) for output in self._gates.get(path, ())]

    @cached_property
    def _gates(self) -> dict[str, tuple[str, ...]]:
        schedule = self._plan.schedule
        return schedule.gates(self._is_checked, os.path.exists) if self._gated() else {}

    @cached_property
    def _wanted(self) -> set[str]:
        """Task vectors that a shard or its check still reads."""
        return {
            delta
            for output, job in self._jobs.items()
            for delta in (job.deltas if output not in self._deltas else (output,))
            if not self._is_checked(output)
        }

    def _without(self, job: ShardJob) -> ShardJob:
        keep_sources, keep_deltas = self._keeps
        output = "" if job.output in self._deltas and not keep_deltas else job.output
        return replace(
            job,
            output=output,
            sources=job.sources if keep_sources else (),
            deltas=job.deltas if keep_deltas else (),
        )

    def _is_made(self, output: str) -> bool:
        if all(self._keeps) or not self._made_once(output):
            return False
        return os.path.exists(output) or output not in self._wanted

    def _made_once(self, output: str) -> bool:
        goes = output in self._deltas and not self._keeps[1]
        there = goes or os.path.exists(output)
        return there and self._says(record_path(output), output)

    def _is_checked(self, output: str) -> bool:
        return self._made_once(output) and self._says(check_record_path(output), output)

    def _says(self, path: str, output: str) -> bool:
        """Whether a record is of what the plan wants."""
        if self._forced():
            return False
        if (path, output) not in self._found:
            says = None
            with contextlib.suppress(UserError):  # not there, or damaged: made anew
                says = load_json(path).get("spec")
            self._found[path, output] = says == self._jobs[output].digest
        return self._found[path, output]
