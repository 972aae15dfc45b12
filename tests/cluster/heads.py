"""The head process of a run on the loopback cluster: Snakemake with the shipped profile."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from loopback import PARTITION, Cluster, Job

from helpers.workflow import NAME, REPOSITORY, Project, environment
from shardmerge.base import claims

PROFILE = REPOSITORY / "profiles" / "slurm" / "config.yaml"


def edited_profile() -> str:
    """Return the shipped profile as a user edits it: a partition, and no account here."""
    text = PROFILE.read_text(encoding="utf-8")
    assert text.count("CHANGE_ME") == 2
    text = re.sub(r"  slurm_account: CHANGE_ME.*\n", "", text)
    return text.replace("slurm_partition: CHANGE_ME", f"slurm_partition: {PARTITION}")


class Head:
    """A run of a project on a cluster.

    Args:
        project: The project.
        cluster: Where its jobs go.
        arguments: Further command line of Snakemake; it wins over the profile.
    """

    def __init__(self, project: Project, cluster: Cluster, *arguments: str) -> None:
        profile = project.folder / "profile"
        profile.mkdir(exist_ok=True)
        (profile / "config.yaml").write_text(edited_profile(), encoding="utf-8")
        self.cluster = cluster
        cluster.started.append(self.kill)
        self.log = project.folder / f"head.{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(Path(__file__).with_name("head.py"))),
                    *("-s", str(REPOSITORY / "Snakefile"), "--directory", str(project.folder)),
                    *("--configfile", str(project.folder / "cfg.yaml"), "--profile", str(profile)),
                    *("--slurm-init-seconds-before-status-checks", "1"),
                    *("--max-status-checks-per-second", "10", "--latency-wait", "10", *arguments),
                ],
                cwd=project.folder,
                env=environment(cluster.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, seconds: float = 240) -> str:
        """Wait until the run ends well; return what it printed."""
        code = self.end(seconds)
        assert code == 0, f"{self.text()}\n{self.cluster.describe()}"
        return self.text()

    def end(self, seconds: float = 240) -> int:
        """Wait until the run ends; return its exit status."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            text = f"{self.text()}\n{self.cluster.describe()}"
            raise AssertionError(f"the run did not end in {seconds} s\n{text}") from None

    def kill(self) -> None:
        """Kill the head and nothing else."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, holds: Callable[[], object], seconds: float = 90) -> None:
        """Wait until a condition holds while the run goes on."""

        def holds_or_ended() -> object:
            assert self.process.poll() is None, f"the run ended\n{self.text()}"
            return holds()

        self.cluster.wait(holds_or_ended, seconds)

    def text(self) -> str:
        """Return what the run has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def done(self) -> int:
        """Return how many jobs it has said are done."""
        return max(map(int, re.findall(r"^(\d+) of \d+ steps", self.text(), re.M)), default=0)

    def submitted(self) -> list[str]:
        """Return the SLURM ids of the jobs that this run has submitted."""
        return re.findall(r"submitted with SLURM jobid (\d+)", self.text())


class Held(contextlib.AbstractContextManager):
    """Keeps merge jobs from going on at the point where they have claimed their shard.

    A job claims its shard, then its record, before it writes. This process has the record's claim.

    Args:
        project: Whose jobs.
        names: Stems of the shards.
    """

    def __init__(self, project: Project, *names: str) -> None:
        self._folder = project.folder / "results" / NAME
        self._stacks = {name: contextlib.ExitStack() for name in names}
        for name, stack in self._stacks.items():
            stack.enter_context(claims.claimed(self._folder / "records" / f"{name}.json"))

    def __exit__(self, *_: object) -> None:
        self.release(*self._stacks)

    def reached(self) -> bool:
        """Return whether all held jobs are there."""
        model = self._folder / "model"
        return all(claims.holder(model / f"{name}.safetensors") for name in self._stacks)

    def release(self, *names: str) -> None:
        """Let these go on."""
        for name in names:
            self._stacks[name].close()


def comments(cluster: Cluster) -> dict[str, list[Job]]:
    """Return all merge jobs that the cluster remembers, by shard, oldest first."""
    found = defaultdict(list)
    for job in cluster.jobs("all").values():
        found[job.comment.rpartition("_")[2]].append(job)
    return found
