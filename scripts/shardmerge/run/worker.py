"""A run's jobs share their imports: they are forked from a process that has all modules loaded.

There is one for all jobs, and one that has torch besides, which is slow to import: to it a job goes
once it knows that it computes what needs torch. A third has compressed-tensors too, for jobs that
quantise. Each is started while Snakemake decides on jobs, or by the first job that asks, and ends
with the run. The first one is started even while a plan is made.
A job that cannot have it, for whatever reason, runs by itself. Linux only: the process listens at
an abstract address, which leaves nothing behind, and takes jobs of its own user alone.

Every job's first process loads this module and little else. So it has the modules that ``signal``
and ``socket`` are made of, which load nothing: the two took longer than all else that it does.
"""

from __future__ import annotations

import _signal
import _socket
import os
import sys
import time

TYPE_CHECKING = False  # without typing, which loads others
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: Names the run whose jobs share a process; without it every job runs by itself.
WORKER_VARIABLE = "SHARDMERGE_WORKER"
#: Kinds of process: with what every job needs, with torch too, with compressed-tensors too.
PLAIN, TORCH, COMPRESSED = "plain", "torch", "compressed"
#: Whether the system has what this takes; abstract addresses are Linux's alone.
_CAN_SHARE = sys.platform == "linux" and all(
    hasattr(module, name)
    for module, name in (
        (os, "pidfd_open"),
        (_signal, "pidfd_send_signal"),
        (_socket, "SO_PEERCRED"),
        (_socket, "SOCK_SEQPACKET"),
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
    try:
        ticks = int(start_ticks(process))
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (AttributeError, ValueError):  # no clock of that name, no /proc
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
    try:
        connection = _connect(_run, kind)
    except OSError:
        return
    with _Stopping(connection) as stopped:
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()  # comes before what the fork writes
            given = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _integers(0, 1, 2))]
            connection.sendmsg([pack_request(sys.argv, os.getcwd(), os.environ, _began)], given)
            status = connection.recv(16)
        except OSError:
            status = b""
    if status or stopped.came:
        os._exit(int(status or 128 + stopped.came[0]))
    connection.close()


def _connect(name: str, kind: str) -> _socket.socket:
    """Return a connection to a run's process of a kind, started if need be.

    Raises:
        OSError: If there is none.
    """
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        for pause in (0.0, *[0.02] * 100):
            time.sleep(pause)
            try:
                connection.connect(address_of(name, kind))
                break
            except ConnectionRefusedError:
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


class _Stopping:
    """On SIGTERM or SIGINT tell the fork to end, and go on waiting: it leaves things in order.

    Args:
        connection: To what the fork was asked from.
    """

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._before: dict[int, object] = {}
        self.came: list[int] = []

    def __enter__(self) -> _Stopping:
        for number in (_signal.SIGTERM, _signal.SIGINT):
            self._before[number] = _signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            _signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        self.came.append(number)
        self._connection.shutdown(_socket.SHUT_WR)


def pack_request(
    words: Sequence[str], folder: str, environment: Mapping[str, str], at: float | None
) -> bytes:
    """Return what a fork is asked for with: none of it has a character 0.

    Args:
        words: Of the command line.
        folder: That it runs in.
        environment: Its variables.
        at: When the job began, if that was before this process.

    Raises:
        OSError: If it is too long.
    """
    began = "" if at is None else repr(at)
    variables = (f"{name}={value}" for name, value in environment.items())
    found = os.fsencode("\0".join((began, folder, str(len(words)), *words, *variables)))
    if len(found) > MOST:
        raise OSError("too long")
    return found


def unpack_request(request: bytes) -> tuple[list[str], str, dict[str, str], float | None]:
    """Return what was packed (``pack_request``)."""
    at, folder, count, *rest = os.fsdecode(request).split("\0")
    words, variables = rest[: int(count)], rest[int(count) :]
    pairs = (one.partition("=") for one in variables)
    return words, folder, {name: value for name, _, value in pairs}, float(at) if at else None


def address_of(name: str, kind: str) -> str:
    """Return the abstract address of a run's process of a kind."""
    return f"\0shardmerge-{os.getuid()}-{name}-{kind}"


def peer_of(connection: _socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end of a connection, by their ids."""
    size = len(_integers(0, 0, 0))
    row = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, size)
    process, user, _ = memoryview(row).cast("i")
    return process, user


def _integers(*numbers: int) -> bytes:
    """Return integers of C."""
    size = memoryview(bytes(8)).cast("i").itemsize
    return b"".join(number.to_bytes(size, sys.byteorder) for number in numbers)
