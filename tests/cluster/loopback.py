"""A SLURM of three nodes on this machine, from the distribution's packages, in a folder of its own.

Nothing is written outside that folder. Nodes are slurmd processes under names of their own, and
GPUs are generic resources that stand for no device. Memory limits are enforced by sampling.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

NODES = ("n1", "n2", "n3")
PARTITION = "short"
#: A node has so many cores and GPUs; the machine's own are fewer.
CORES, GPUS = 8, 2

_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
JobCompType=jobcomp/none
GresTypes=gpu
MinJobAge=300
KillWait=2
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] \
CPUs={cores} CoresPerSocket={cores} RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName={partition} Nodes={nodes} Default=YES LLN=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why there can be no cluster here, or None."""
    for program in ("slurmctld", "slurmd", "sbatch", "srun", "munged"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None if os.getuid() == 0 else "slurmctld and slurmd are started as root"


class Cluster:
    """A running cluster.

    Args:
        folder: Where all of it lives; the path must be short, since it holds a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = folder / "bin"
        self.started: list[Callable[[], None]] = []  # what ends the processes that use it
        self._seen = 0  # the number of the last job of an earlier test
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{self._bin}:{os.environ['PATH']}",
        }

    def start(self) -> None:
        """Bring everything up, and wait until all nodes are idle."""
        for name in ("state", "bin"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        first = _free_ports(1 + len(NODES))
        text = _CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            folder=self.folder,
            ports=(first, first + 1, first + len(NODES)),
            nodes=f"n[1-{len(NODES)}]",
            cores=CORES,
            gpus=GPUS,
            partition=PARTITION,
        )
        (self.folder / "slurm.conf").write_text(text)
        # Two different devices, since SLURM numbers the GPUs in CUDA_VISIBLE_DEVICES by them.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        self._wrap("srun", "squeue", "scontrol")
        files = {name: self.folder / f"munge.{name}" for name in ("pid", "log", "seed", "sock")}
        _run(
            "munged",
            *(f"--key-file={key}", f"--socket={files['sock']}", f"--pid-file={files['pid']}"),
            *(f"--log-file={files['log']}", f"--seed-file={files['seed']}"),
            # The folder is the tests' own, but may lie below one that all may write to.
            "--force",
        )
        self._run("slurmctld", "-f", self.environment["SLURM_CONF"], "-c")
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.node_states() == dict.fromkeys(NODES, "idle"))

    def stop(self) -> None:
        """End all jobs, then all daemons, by their numbers."""
        with contextlib.suppress(AssertionError):  # the daemons go in any case
            self.reset()
        for node in NODES:
            self.stop_node(node)
        for name in ("slurmctld", "munge"):
            self._end(self.folder / f"{name}.pid")
        for process in self._left():  # SLURM finds jobs here by their parents, and may miss some
            with contextlib.suppress(psutil.Error):
                process.kill()

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        self._run("scancel", "--user", "root")
        self.wait(lambda: not self.jobs())

    def reset(self) -> None:
        """End all that uses the cluster, bring lost nodes back and cancel all jobs."""
        while self.started:
            self.started.pop()()
        for node, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                self.start_node(node)
                with contextlib.suppress(AssertionError):  # it may have come back by itself
                    self._run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.cancel_all()
        self.wait(lambda: set(self.node_states().values()) == {"idle"})
        self._seen = max(map(int, self.jobs("all")), default=self._seen)

    def submit(self, *arguments: str) -> str:
        """Submit a job that sleeps; return its id."""
        where = ("--output=/dev/null", "--wrap", "sleep 600")
        return self._run("sbatch", "--parsable", *arguments, *where).strip()

    def hold(self, job: str) -> None:
        """Put a running job back into the queue, and keep it there."""
        self._run("scontrol", "requeuehold", job)
        self.wait(lambda: self.jobs("PENDING").get(job))

    def release(self, job: str) -> None:
        """Let a held job start."""
        self._run("scontrol", "release", job)

    def cancel(self, *ids: str) -> None:
        """Cancel jobs."""
        self._run("scancel", *ids)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._run("slurmd", "-f", self.environment["SLURM_CONF"], "-N", node)

    def stop_node(self, node: str, sign: int = signal.SIGTERM) -> None:
        """End a node's slurmd; the steps that it started live on."""
        self._end(self.folder / f"slurmd.{node}.pid", sign)

    def lose_node(self, node: str) -> None:
        """Kill a node with all that runs on it, and have the controller notice at once."""
        running = {j.id for j in self.jobs("RUNNING", "COMPLETING").values() if j.node == node}
        steps = [p for p in self._left() if _job_of(p) in running]
        self.stop_node(node, signal.SIGKILL)
        for process in [p for step in steps for p in (step, *step.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def node_states(self) -> dict[str, str]:
        """Return the state of each node, in SLURM's short words."""
        lines = self._run("sinfo", "--noheader", "--Node", "--format=%N %t").splitlines()
        return dict(line.split() for line in lines)

    def jobs(self, *states: str) -> dict[str, Job]:
        """Return this test's jobs that are in one of the states, or not yet ended, by id."""
        chosen = [f"--states={','.join(states)}"] if states else []
        text = self._run("squeue", "--noheader", "--format=%i|%T|%N|%k|%l|%m", *chosen)
        jobs = sorted((Job(*line.split("|")) for line in text.splitlines()), key=Job.number)
        return {job.id: job for job in jobs if job.number() > self._seen}

    def gpus(self, job: str) -> int:
        """Return the GPUs that a job asked for."""
        found = re.search(r"TresPerJob=\S*gpu:(\d+)", self._run("scontrol", "show", "job", job))
        return int(found[1]) if found else 0

    def wait(self, holds: Callable[[], object], seconds: float = 60) -> None:
        """Wait until a condition holds; fail with the queue and the logs' ends if it does not."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s\n{self.describe()}")
            time.sleep(0.1)

    def describe(self) -> str:
        """Return queue, nodes and the ends of the logs."""
        parts = [self._run("squeue", "--states=all"), self._run("sinfo", "-N", "-l")]
        for log in sorted(self.folder.glob("*.log")):
            parts.append(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]))
        return "\n".join(parts)

    def _left(self) -> Iterator[psutil.Process]:
        """Yield the processes that were started with this cluster's configuration."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF", "").startswith(f"{self.folder}/"):
                    yield process

    def _wrap(self, *programs: str) -> None:
        """Make programs find the configuration: the jobstep executor takes SLURM_CONF away."""
        for name in programs:
            script = self._bin / name
            script.write_text(
                f"#!/bin/sh\nSLURM_CONF='{self.environment['SLURM_CONF']}'\nexport SLURM_CONF\n"
                f"exec '{shutil.which(name)}' \"$@\"\n"
            )
            script.chmod(0o755)

    def _run(self, *command: str) -> str:
        return _run(*command, env=self.environment)

    def _end(self, pid_file: Path, sign: int = signal.SIGTERM) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int(pid_file.read_text()))
            process.send_signal(sign)
            process.wait(timeout=20)
        pid_file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it."""

    id: str
    state: str
    node: str
    comment: str
    limit: str
    memory: str

    def number(self) -> int:
        """Return the id as a number, which grows with the time of submission."""
        return int(self.id)


def _job_of(process: psutil.Process) -> str | None:
    """Return the SLURM job whose step a process manages, or None."""
    with contextlib.suppress(psutil.Error):
        found = re.match(r"slurmstepd: \[(\d+)\.", " ".join(process.cmdline()))
        return found and found[1]
    return None


def _run(*command: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
    return done.stdout


def _free_ports(count: int) -> int:
    """Return the first of so many ports in a row that nobody listens on.

    Clusters that start at the same time look at rows that share no port.
    """
    for first in range(21000 + os.getpid() % (5000 // count) * count, 40000, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise OSError("no ports are free")
