"""A run's jobs share their imports: they are forked from a process that has all modules loaded.

There is one for all jobs, and one that has torch besides, which is slow to import: to it a job goes
once it knows that it computes what needs torch. A third has compressed-tensors too, for jobs that
quantise. Each is started while Snakemake decides on jobs, or by the first job that asks, and ends
with the run. The first one is started even while a plan is made.
A job that cannot have it, for whatever reason, runs by itself. Linux only: the process listens at
an abstract address, which leaves nothing behind, and takes jobs of its own user alone.

Every job's first process loads this module and little else, so it imports few modules itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator

#: Names the run whose jobs share a process; without it every job runs by itself.
WORKER_VARIABLE = "SHARDMERGE_WORKER"
#: Kinds of process: with what every job needs, with torch too, with compressed-tensors too.
PLAIN, TORCH, COMPRESSED = "plain", "torch", "compressed"
#: Whether the system has what this takes; abstract addresses are Linux's alone.
_CAN_SHARE = sys.platform == "linux" and all(
    hasattr(module, name)
    for module, name in (
        (os, "pidfd_open"),
        (signal, "pidfd_send_signal"),
        (socket, "SO_PEERCRED"),
        (socket, "SOCK_SEQPACKET"),
    )
)
MOST = 1 << 20  # bytes of a request: a command line and an environment
_began: float | None = None
#: Of a forked job: the run, and the kind of process that it was forked from.
_run: str | None = None
_kind: str | None = None


class Worker:
    """The processes that a run's jobs are forked from, as the run itself sees them.

    Args:
        process: Id of the run's process; None for one whose jobs each run by themselves.
        expects: Whether it runs its jobs, and here: a dry run does not, nor does a cluster's.
    """

    def __init__(self, process: int | None, *, expects: bool) -> None:
        self._name = None if process is None else str(process)
        self._waits = process is not None and expects and _CAN_SHARE
        self._started: set[str] = set()

    @property
    def prefix(self) -> str:
        """What tells jobs of it, for their shell."""
        return f"export {WORKER_VARIABLE}={self._name}; " if self._name else ""

    def foresee(self) -> None:
        """Start the process for all jobs, since there will be some, as far as can be told."""
        self._begin(PLAIN)

    def expect(self, files: Iterable[str], torch: bool) -> None:
        """Start the processes if one of these files is missing, so that there will be jobs.

        Args:
            files: Outputs.
            torch: Whether some of the jobs need torch.
        """
        if self._waits and not all(map(os.path.exists, files)):
            for kind in (PLAIN, TORCH) if torch else (PLAIN,):
                self._begin(kind)

    def _begin(self, kind: str) -> None:
        if self._waits and kind not in self._started:
            self._started.add(kind)
            _start(self._name, kind)


def become(run: str, kind: str) -> None:
    """Note that this process, and what is forked from it, is a run's shared one of a kind."""
    global _run, _kind
    _run, _kind = run, kind


def begin(at: float) -> None:
    """Note when the process began whose job this fork takes over."""
    global _began
    _began = at


def process_began() -> float:
    """Return when this job's first process began, in seconds of ``time.perf_counter``."""
    return began(os.getpid()) if _began is None else _began


def began(process: int) -> float:
    """Return when a process began, in seconds of ``time.perf_counter``; now, if nothing tells."""
    from shardmerge.base.owner import start_ticks  # slow to load

    now = time.perf_counter()
    with contextlib.suppress(AttributeError, ValueError):  # no clock of that name, no /proc
        ticks = int(start_ticks(process))
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return now


def start_job(main: Callable[[], None], kind: str = PLAIN) -> None:
    """Run a script's main function in a fork of a shared process, or else here.

    Args:
        main: As for ``cli.run``. It imports what it needs by itself.
        kind: Of the shared process.
    """
    delegate(kind)
    from shardmerge.run.cli import run

    run(main)


def delegate(kind: str = PLAIN) -> None:
    """Run this process's script in a fork of a shared process, and exit as it does.

    Returns where there is none to be had, or where this is such a fork; the script then runs here.

    Args:
        kind: PLAIN, or another as soon as it is known that what it has is needed and before
            anything else.
    """
    global _run
    _run = os.environ.pop(WORKER_VARIABLE, None) or _run
    if not (_run and _CAN_SHARE) or kind == _kind or _kind in (TORCH, COMPRESSED):
        return
    with contextlib.suppress(OSError), _connect(_run, kind) as connection:
        request = [sys.argv, os.getcwd(), dict(os.environ), _began]
        with _stopping(connection) as stopped:
            socket.send_fds(connection, [_packed(request)], [0, 1, 2])
            status = connection.recv(16)
        if status or stopped:
            os._exit(int(status or 128 + stopped[0]))


def _connect(name: str, kind: str) -> socket.socket:
    """Return a connection to a run's process of a kind, started if need be.

    Raises:
        OSError: If there is none.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        for pause in (0.0, *[0.02] * 100):
            time.sleep(pause)
            with contextlib.suppress(ConnectionRefusedError):
                connection.connect(address_of(name, kind))
                break
            if not pause:
                _start(name, kind)
        if peer_of(connection)[1] != os.getuid():
            raise PermissionError
    except BaseException:
        connection.close()
        raise
    return connection


def _start(name: str, kind: str) -> None:
    import subprocess

    scripts = os.path.abspath(f"{os.path.dirname(__file__)}/../..")
    code = f"import sys; sys.path[0] = {scripts!r}; from shardmerge.run.forking import serve; "
    subprocess.Popen(
        [sys.executable, "-c", code + f"serve({name!r}, {kind!r})"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the jobs, which pass it on
        cwd="/",
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a fork takes no threads along
    )


@contextlib.contextmanager
def _stopping(connection: socket.socket) -> Iterator[list[int]]:
    """On SIGTERM or SIGINT tell the fork to end, and go on waiting: it leaves things in order.

    Yields the signals that came.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        connection.shutdown(socket.SHUT_WR)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _packed(request: list) -> bytes:
    packed = json.dumps(request).encode()
    if len(packed) > MOST:
        raise OSError("too long")
    return packed


def address_of(name: str, kind: str) -> str:
    """Return the abstract address of a run's process of a kind."""
    return f"\0shardmerge-{os.getuid()}-{name}-{kind}"


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end of a connection, by their ids."""
    row = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", row)
    return process, user
