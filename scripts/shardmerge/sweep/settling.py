"""A trial is settled: its scores are written, and weights that nobody needs any more go.

Trials of a sweep are settled one after the other, so that each sees those before it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base import claims
from shardmerge.base.claims import Say
from shardmerge.base.files import write_json
from shardmerge.plan.plan import Build, Plan
from shardmerge.sweep.best import read_points
from shardmerge.sweep.settled import identity_in, settled_data
from shardmerge.sweep.sweeps import Sweep, SweepTrial
from shardmerge.sweep.weights import settle


@dataclass(frozen=True)
class Settled:
    """A sweep whose trials are settled.

    Args:
        sweep: The sweep.
        plan: That has its trials.
        results: The folder of results.
        tasks: What trials are measured by.
        known: Of each trial the digest of all that its measurements depend on.
    """

    sweep: Sweep
    plan: Plan
    results: str
    tasks: Sequence[str]
    known: Mapping[str, str]

    def settle(self, trial: str, output: Path, say: Say) -> None:
        """Write the scores of a trial that has been measured, and delete weights.

        Args:
            trial: Its name.
            output: Where to write the scores.
            say: Takes a line for what is deleted.

        Raises:
            UserError: If a result is damaged.
        """
        with claims.claimed(Path(self.results, "sweeps", self.sweep.name, "weights"), say):
            # of others only those whose measurement is of today's plan: else it is still to come
            settled = [name for name, of in self.known.items() if self._told(name) == of]
            names = dict.fromkeys([*settled, trial])
            files = {n: self.sweep.result_files(self.results, n, self.tasks) for n in names}
            points = read_points(self.sweep, files)
            settle(self.sweep, self.plan, points, trial, say, self._awaited(trial))
            # within the claim: who comes next must see this one
            write_json(output, settled_data(self.sweep, points, trial, self.known[trial]))

    def _told(self, trial: str) -> str | None:
        return identity_in(self.sweep.settled(self.results, trial))

    def _awaited(self, trial: str) -> list[str]:
        """Return the trials that are to be measured once more, so that their weights stay.

        Such a one is to be reported on the other half of the questions. Or it was built again: a
        run that is told to do all anew finds what the run before it measured.
        """
        return [
            one.name
            for one in self.sweep.built
            if self._is_to_report(one)
            or (one.name != trial and self._is_newer(self.plan.builds[self.sweep.build(one.name)]))
        ]

    def _is_to_report(self, one: SweepTrial) -> bool:
        files = self.sweep.report_files(self.results, one.name, self.tasks)
        return one.reported and not all(map(os.path.exists, files))

    def _is_newer(self, build: Build) -> bool:
        """Whether weights were built after what was measured of them was written."""
        settled = Path(self.results, build.name, "measured.json")
        shards = [Path(job.output) for job in build.shards]
        if not settled.exists():
            return False
        measured = settled.stat().st_mtime_ns
        return any(path.exists() and path.stat().st_mtime_ns > measured for path in shards)
