"""Who owns a claim, and whether that process is still there."""

from __future__ import annotations

import calendar
import contextlib
import getpass
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from shardmerge.base.printable import is_printable, printable

#: States in which SLURM has no process of a job: a pending one was requeued, the rest ended.
_NOT_RUNNING = {
    *("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "REVOKED"),
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}
_TOKEN = re.compile(r"[0-9A-Za-z]{1,64}")
_NUMBER = re.compile(r"[0-9]*")
_LONGEST = 300


class Times(Protocol):
    """The seconds after which silence means something (``claims.Patience``)."""

    late: float
    stale: float


@dataclass(frozen=True)
class Owner:
    """The process that holds a claim.

    Args:
        token: What tells one claim from all others.
        user, host, since: For people; ``since`` is UTC.
        boot: The kernel's boot id, which no other machine has.
        namespace: Where process numbers mean what they mean here (a container has its own).
        pid, started: The process, and its start in clock ticks since boot.
        cluster, job: SLURM's cluster and job id, where it runs in one.
    """

    token: str
    user: str
    host: str
    since: str
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    started: str = ""
    cluster: str = ""
    job: str = ""

    def __str__(self) -> str:
        job = f"SLURM job {self.job}, " if self.job else ""
        return f"{self.user} on {self.host} ({job}process {self.pid}) since {self.since}"

    def to_json(self) -> dict[str, Any]:
        """Return the owner as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_text(cls, text: str, status: os.stat_result) -> Owner:
        """Return the owner that a claim's text names, or what its file tells of it.

        A claim is read half written only where a file system has no hard links.
        """
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            owner = cls(**json.loads(text))
            if owner._is_sound():
                return owner
        try:
            user = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            user = f"user {status.st_uid}"
        return Unknown(f"inode{status.st_ino}", user, "an unknown machine", _utc(status.st_ctime))

    def _is_sound(self) -> bool:
        """Return whether all is as ``this_process`` makes it; the token becomes part of a path."""
        values = asdict(self)
        if type(values.pop("pid")) is not int or not 0 <= self.pid < 1 << 31:
            return False
        if not all(isinstance(v, str) and len(v) <= _LONGEST for v in values.values()):
            return False
        if not all(map(is_printable, values.values())):
            return False
        return bool(_TOKEN.fullmatch(self.token) and _NUMBER.fullmatch(f"{self.started}{self.job}"))


@dataclass(frozen=True)
class Unknown(Owner):
    """Whoever made a claim that does not tell: empty, damaged, or not for others to read.

    Who lives touches even that. So a short silence is enough.
    """

    def __str__(self) -> str:
        return f"{self.user} on {self.host} since {self.since} (the claim itself cannot be read)"


def this_process(token: str) -> Owner:
    """Return this process as an owner from now on."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"
    job = os.environ.get("SLURM_JOB_ID", "")
    return Owner(
        token=token,
        user=_plain(user),
        host=_plain(platform.node()),
        since=_utc(time.time()),
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=started(os.getpid()),
        cluster=_plain(os.environ.get("SLURM_CLUSTER_NAME", "")),
        job=job if _NUMBER.fullmatch(job) else "",
    )


def _plain(text: str) -> str:
    """Return a text as a claim may hold it, so that others take it for one."""
    return printable(text)[:_LONGEST]


def is_dead(owner: Owner, age: float, times: Times, watched: float = float("inf")) -> bool:
    """Return whether an owner will never touch its claim again.

    Args:
        owner: Who.
        age: Seconds since its last sign of life.
        times: What silence of how many seconds means.
        watched: Seconds in which this process itself saw no sign of life. A shared file system
            that hung lets claims look old although their owners live.
    """
    if isinstance(owner, Unknown):
        return min(age, watched) > times.late
    if owner.boot and (owner.boot, owner.namespace) == (_boot(), _namespace()):
        return started(owner.pid) != owner.started and not _is_hidden(owner.pid)
    if age > times.late and owner.job and _left_slurm(owner):
        return True
    return age > times.stale and watched > times.late


def _left_slurm(owner: Owner) -> bool:
    """Return whether SLURM, asked now and then, says that the owner's job does not run."""
    if not owner.cluster or owner.cluster != os.environ.get("SLURM_CLUSTER_NAME"):
        return False
    if owner.job == os.environ.get("SLURM_JOB_ID"):
        return True  # requeued: this is the same job on another machine
    return shutil.which("squeue") is not None and _asked(owner.job, int(time.monotonic() / 30))


@cache
def _asked(job: str, _now: int) -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["squeue", "--noheader", "--format=%T", "--jobs", job],
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode != 0:
            return "Invalid job id" in done.stderr
        return set(done.stdout.split()) <= _NOT_RUNNING
    return False


def started(pid: int) -> str:
    """Return what tells a process from earlier ones of its number, or nothing if there is none.

    Its start, in clock ticks since boot or, where the system has no /proc, in seconds. A zombie is
    no process any more.
    """
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/stat").read_text()
        return start_ticks(pid)
    state, *start = _told("ps", "-o", "stat=,lstart=", "-p", str(pid)).split() or "Z"
    with contextlib.suppress(ValueError):
        found = time.strptime(" ".join(start), "%a %b %d %H:%M:%S %Y")
        return "" if state[0] in "ZX" else str(calendar.timegm(found))
    return ""


def start_ticks(pid: int) -> str:
    """Return a process's start in clock ticks since boot, or nothing if that cannot be seen.

    The 22nd field of /proc/PID/stat, counted behind the command's closing parenthesis (proc(5)).
    """
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _is_hidden(pid: int) -> bool:
    """Return whether a process is there although only its own user sees more of it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not start_ticks(pid)
    except OSError:
        pass
    return False


def _told(*command: str) -> str:
    """Return what a system's command prints, in English and UTC; nothing if it fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=30,
            env=os.environ | {"LC_ALL": "C", "TZ": "UTC"},
        ).stdout.strip()
    return ""


@cache
def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return _told("sysctl", "-n", "kern.bootsessionuuid")  # macOS


@cache
def _namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
