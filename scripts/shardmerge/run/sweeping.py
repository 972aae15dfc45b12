"""What the rules of sweeps ask for: trials in their order, what each waits for, what is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import write_json
from shardmerge.run.cli import tell
from shardmerge.run.drive import tell_state
from shardmerge.run.expected import expected_path, note_expected
from shardmerge.run.failing import waits_path
from shardmerge.run.resources import megabytes
from shardmerge.run.targets import Targets
from shardmerge.sweep.failures import drop_weights
from shardmerge.sweep.scratch import check_shared, use_scratch
from shardmerge.sweep.settled import identity_in
from shardmerge.sweep.sweep_files import keep_sweep
from shardmerge.sweep.sweeps import Sweep

#: What a sweep's table comes with, in the sweep's folder.
SWEEP_FILES = ("table.json", "table.csv", "table.md", "trials.json", "best.yaml")


class SweepTargets:
    """Paths and jobs of sweeps.

    Args:
        sweeps: All of a configuration.
        targets: The workflow's, with the trials.
        dry: Whether nothing is written.
        forced: Whether jobs run that need not, so that nothing counts as done; asked when needed.
    """

    def __init__(
        self, sweeps: Sequence[Sweep], targets: Targets, *, dry: bool, forced: Callable[[], bool]
    ) -> None:
        self._targets, self._forced = targets, forced
        self._results = targets.settings["results"]
        self._tasks = targets.settings["benchmark"]["tasks"]
        planned = sweeps if targets.plan.builds else ()
        self.sweeps = {sweep.name: sweep for sweep in planned}
        self.files = {sweep.name: keep_sweep(sweep, dry) for sweep in planned}
        self._trials = [(sweep, c.name) for sweep in planned for c in sweep.built]
        self._places = {sweep.build(name): i for i, (sweep, name) in enumerate(self._trials)}
        self._by_label = {sweep.label(name): (sweep, name) for sweep, name in self._trials}
        self._by_label |= {s.report_label(c.name): (s, c.name) for s in planned for c in s.reported}
        self._done: dict[str, bool] = {}

    @property
    def labels(self) -> list[str]:
        """What trials are called among measured models."""
        return list(self._by_label)

    def results(self, sweep: str, trial: str) -> list[str]:
        """Return the paths of what is measured of a trial."""
        return self.sweeps[sweep].result_files(self._results, trial, self._tasks)

    def all_results(self, sweep: str) -> list[str]:
        """Return the same of all trials of a sweep."""
        return [path for c in self.sweeps[sweep].final for path in self.results(sweep, c.name)]

    def reported(self, sweep: str) -> list[str]:
        """Return what is measured of trials on the other half of the questions."""
        own = self.sweeps[sweep]
        names = [c.name for c in own.reported]
        return [p for n in names for p in own.report_files(self._results, n, self._tasks)]

    def settled(self, sweep: str) -> list[str]:
        """Return what shows that all trials of a sweep are measured and seen to."""
        own = self.sweeps[sweep]
        return [own.settled(self._results, c.name) for c in own.final]

    def references(self) -> list[str]:
        """Return the results of models that are no trials and no builds, for comparison."""
        models = [m for m in self._targets.measured if m not in self._targets.plan.models]
        return [f"{self._results}/benchmarks/{m}/{t}.json" for m in models for t in self._tasks]

    def identity(self, sweep: str, trial: str) -> str:
        """Return the digest of all that a trial's measurements depend on."""
        label = self.sweeps[sweep].label(trial)
        return digest([self._targets.benchmark_identity(label, task) for task in self._tasks])

    @cached_property
    def _identities(self) -> dict[str, dict[str, str]]:
        return {
            name: {c.name: self.identity(name, c.name) for c in sweep.built}
            for name, sweep in self.sweeps.items()
        }

    def known(self, sweep: str) -> list[str]:
        """Return each trial of a sweep with its identity."""
        return [f"{trial}={identity}" for trial, identity in self._identities[sweep].items()]

    def content(self, sweep: str) -> str:
        """Return the digest of all that a sweep's tables depend on."""
        own = self.sweeps[sweep]
        return digest([self.known(sweep), self.files[sweep], own.keep, self.references()])

    def measured_files(self, label: str) -> Sequence[str]:
        """Return the files of a trial that must be there to measure it; none if that is done."""
        sweep, trial = self._by_label[label]
        if label != sweep.label(trial):  # the other half of the questions
            files = sweep.report_files(self._results, trial, self._tasks)
            done = all(map(os.path.exists, files)) and not self._forced()
            return () if done else self._targets.trials[label].files
        return () if self._is_done(sweep, trial) else self._targets.trials[label].files

    def note_expected(self, *, dry: bool) -> None:
        """Note what the results of searches must be of, for their next step.

        Raises:
            UserError: If it is another thing than before.
        """
        for sweep in self.sweeps.values():
            if sweep.searched:
                made = {
                    sweep.label(c.name): {
                        task: self._targets.benchmark_identity(sweep.label(c.name), task)
                        for task in self._tasks
                    }
                    for c in sweep.built
                }
                note_expected(expected_path(self._results, sweep.name), made, dry=dry)

    def before(self, build: str) -> list[str]:
        """Return what must be settled before a model is built, so that its weights find room."""
        earlier = self._earlier(build)
        return [earlier[0].settled(self._results, earlier[1])] if earlier else []

    def _earlier(self, build: str) -> tuple[Sweep, str] | None:
        """Return the trial that must be settled before a model is built, None if none must."""
        place, window = self._places.get(build), self._targets.plan.room.window
        if place is None or not window or place < window:
            return None
        if self._is_done(*self._trials[place]):
            return None
        sweep, trial = self._trials[place - window]
        return (sweep, trial) if any(c.name == trial for c in sweep.final) else None

    def note_waits(self) -> None:
        """Note what the trials of plain sweeps wait for, and tell how these stand."""
        plain = [(s, trial) for s, trial in self._trials if s.searched is None]
        waits = {}
        for sweep, trial in plain:
            earlier = self._earlier(sweep.build(trial))
            waits[sweep.build(trial)] = {
                "sweep": sweep.name, "trial": trial, "identity": self.identity(sweep.name, trial),
                "after": earlier and earlier[0].build(earlier[1]),
            }  # fmt: skip
        if plain:
            write_json(waits_path(self._results), waits)
        tell_state(
            {
                sweep.name: {
                    "finished": all(self._is_done(sweep, c.name) for c in sweep.built),
                    "measured": sum(self._is_done(sweep, c.name) for c in sweep.built),
                    "failed": len(sweep.candidates) - len(sweep.built),
                }
                for sweep in self.sweeps.values()
                if sweep.searched is None
            }
        )

    def _is_done(self, sweep: Sweep, trial: str) -> bool:
        """Whether a trial is measured as it would be now, so that its weights may be gone."""
        if self._forced():
            return False
        label = sweep.label(trial)
        if label not in self._done:
            identity = self._identities[sweep.name][trial]
            there = all(map(os.path.exists, self.results(sweep.name, trial)))
            told = identity_in(sweep.settled(self._results, trial))
            self._done[label] = there and told == identity
        return self._done[label]

    def sources(self, sweep: str) -> list[str]:
        """Return what a sweep's kept weights are made from, so that it is there to the end."""
        own, plan = self.sweeps[sweep], self._targets.plan
        if own.keep == "none":
            return []
        jobs = [job for c in own.built for job in plan.builds[own.build(c.name)].shards]
        read = {path for job in jobs for path in job.deltas}
        jobs += [job for job in plan.deltas if job.output in read]
        return list(dict.fromkeys(path for job in jobs for path in job.sources))

    def megabytes(self, sweep: str) -> int:
        """Return the memory that it takes at most to build or check one of a sweep's shards."""
        own, plan = self.sweeps[sweep], self._targets.plan
        jobs = [job for c in own.built for job in plan.builds[own.build(c.name)].shards]
        return megabytes(max(max(job.memory, job.check_memory) for job in jobs))

    def plots(self, sweep: str) -> list[str]:
        """Return what is drawn of a sweep, by the variables and objectives that it has."""
        own = self.sweeps[sweep]
        variables = list(own.candidates[0].values)
        names = [f"over-{name}.svg" for name in variables]
        names += ["pareto.svg"] if len(own.objectives) > 1 else []
        names += ["grid.svg"] if len(variables) == 2 else []
        names.append("parallel.svg")
        return [f"{self.folder(sweep)}/plots/{name}" for name in names]

    def folder(self, sweep: str) -> str:
        """Return the folder of a sweep's results."""
        return f"{self._results}/sweeps/{sweep}"

    def finished(self, only: Callable[[Sweep], bool] = lambda sweep: True) -> list[str]:
        """Return what shows that sweeps are done.

        Args:
            only: Says which.

        Raises:
            UserError: If none is configured.
        """
        if not self.sweeps and self._targets.plan.builds:
            hint = "docs/howto/sweep.md has an example."
            raise UserError("there is no `sweep`", "configuration", hint)
        names = (*SWEEP_FILES, "kept.json", "plots/parallel.svg", "plots/trials.html")
        done = [name for name, sweep in self.sweeps.items() if only(sweep)]
        return [f"{self.folder(sweep)}/{file}" for sweep in done for file in names]

    def generation(self) -> list[str]:
        """Return what a step of searches makes: what it asks for, at the end what it found."""
        searches = {s.name: s.searched for s in self.sweeps.values() if s.searched}
        done = {name for name, found in searches.items() if found.finished}
        files = self.finished(lambda sweep: sweep.name in done)
        files += [self.convergence(name) for name in done]
        for name in searches.keys() - done:
            final = {c.name for c in self.sweeps[name].final}
            files += self.settled(name)
            early = [c.name for c in self.sweeps[name].built if c.name not in final]
            files += [path for trial in early for path in self.results(name, trial)]
        return files

    def convergence(self, sweep: str) -> str:
        """Return the path of the picture of how a search came to its best trial."""
        return f"{self.folder(sweep)}/plots/convergence.svg"

    def check_shared(self) -> None:
        """Refuse scratch folders that jobs on other machines cannot see.

        Raises:
            UserError: If one is of this machine.
        """
        for sweep in self.sweeps.values():
            if sweep.scratch:
                check_shared(sweep.scratch, self._results)

    def prepare(self) -> None:
        """Make the places of weights on scratch disks; weights of trials that failed go.

        Raises:
            UserError: If one cannot be used.
        """
        for sweep in self.sweeps.values():
            for one in sweep.candidates:
                if one.status == "failed":
                    drop_weights(Path(self._results, sweep.build(one.name), "model"), tell)
            if sweep.scratch:
                todo = [c.name for c in sweep.built if not self._is_done(sweep, c.name)]
                use_scratch(sweep, todo, self._results)
