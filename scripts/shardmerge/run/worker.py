"""A run's jobs share their imports: they are forked from a process that has all modules loaded.

There is one for all jobs, and one that has torch besides, which is slow to import: to it a job goes
once it knows that it computes what needs torch. Each is started while Snakemake decides on jobs, or
by the first job that asks, and ends with the run.
A job that cannot have it, for whatever reason, runs by itself. Linux only: the process listens at
an abstract address, which leaves nothing behind, and takes jobs of its own user alone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shardmerge.base.owner import start_ticks

#: Names the run whose jobs share a process; without it every job runs by itself.
WORKER_VARIABLE = "SHARDMERGE_WORKER"
#: Kinds of process: with what every job needs, and with torch too.
PLAIN, TORCH = "plain", "torch"
#: Imported before the first job: all that merging and checking a shard needs.
_PLAIN = (
    "shardmerge.engine.native_lane",
    "shardmerge.methods",
    "shardmerge.plan.files",
    "shardmerge.plan.records",
    "shardmerge.check.shard",
)
_PRELOADED = {PLAIN: _PLAIN, TORCH: (*_PLAIN, "shardmerge.engine.torch_lane")}
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
_MOST = 1 << 20  # bytes of a request: a command line and an environment
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
        self._idle = process is None or not (expects and _CAN_SHARE)

    @property
    def prefix(self) -> str:
        """What tells jobs of it, for their shell."""
        return f"export {WORKER_VARIABLE}={self._name}; " if self._name else ""

    def expect(self, files: Iterable[str], torch: bool) -> None:
        """Start the processes if one of these files is missing, so that there will be jobs.

        Args:
            files: Outputs.
            torch: Whether some of the jobs need torch.
        """
        if not (self._idle or all(map(os.path.exists, files))):
            self._idle = True
            for kind in (PLAIN, TORCH) if torch else (PLAIN,):
                _start(self._name, kind)


def process_began() -> float:
    """Return when this job's first process began, in seconds of ``time.perf_counter``."""
    if _began is not None:
        return _began
    now = time.perf_counter()
    with contextlib.suppress(AttributeError, ValueError):  # no clock of that name, no /proc
        ticks = int(start_ticks(os.getpid()))
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return now


def delegate(kind: str = PLAIN) -> None:
    """Run this process's script in a fork of a shared process, and exit as it does.

    Returns where there is none to be had, or where this is such a fork; the script then runs here.

    Args:
        kind: PLAIN, or TORCH as soon as it is known that torch is needed and before anything else.
    """
    global _run
    _run = os.environ.pop(WORKER_VARIABLE, None) or _run
    if not (_run and _CAN_SHARE) or kind == _kind or _kind == TORCH:
        return
    with contextlib.suppress(OSError), _connect(_run, kind) as connection:
        request = [sys.argv, os.getcwd(), dict(os.environ), process_began()]
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
                connection.connect(_address(name, kind))
                break
            if not pause:
                _start(name, kind)
        if _peer(connection) != os.getuid():
            raise PermissionError
    except BaseException:
        connection.close()
        raise
    return connection


def _start(name: str, kind: str) -> None:
    scripts = os.path.abspath(f"{os.path.dirname(__file__)}/../..")
    code = f"import sys; sys.path[0] = {scripts!r}; from {__name__} import serve; "
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


@dataclass
class _Fork:
    pid: int
    watched: int
    connection: socket.socket


class _Server:
    """Forks a process for each request, passes its status on, ends it where its client is gone."""

    def __init__(self, listener: socket.socket, run: int) -> None:
        self._listener = listener
        self._run = run
        self._over = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(run, selectors.EVENT_READ)
        self._forks: list[_Fork] = []

    def serve(self) -> None:
        """Take jobs until the run is over and all are done."""
        while self._forks or not self._over:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._run:
                    self._over = True
                    self._selector.unregister(self._run)
                elif key.fileobj == key.data.watched:
                    self._ended(key.data)
                elif key.data in self._forks:  # the client is gone, or was told to stop
                    self._selector.unregister(key.data.connection)
                    signal.pidfd_send_signal(key.data.watched, signal.SIGTERM)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        message, descriptors, _, _ = socket.recv_fds(connection, _MOST, 3)
        if _peer(connection) != os.getuid() or len(descriptors) != 3:
            connection.close()
            return
        pid = os.fork()
        if not pid:
            connection.close()
            self._selector.close()
            self._listener.close()
            os.close(self._run)
            _run_here(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        fork = _Fork(pid, os.pidfd_open(pid), connection)
        self._selector.register(fork.watched, selectors.EVENT_READ, fork)
        self._selector.register(connection, selectors.EVENT_READ, fork)
        self._forks.append(fork)

    def _ended(self, fork: _Fork) -> None:
        _, status = os.waitpid(fork.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):  # the client may be gone
            fork.connection.send(b"%d" % (code if code >= 0 else 128 - code))
        with contextlib.suppress(KeyError):
            self._selector.unregister(fork.connection)
        self._selector.unregister(fork.watched)
        os.close(fork.watched)
        fork.connection.close()
        self._forks.remove(fork)


def _run_here(request: list, descriptors: list[int]) -> None:
    """Be the client's process: its files, folder, environment and script; never returns."""
    global _began
    status = 1
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.argv, folder, environment, _began = request
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        gc.enable()
        status = _status_of(sys.argv[0])
    finally:
        os._exit(status)


def _status_of(script: str) -> int:
    import atexit
    import traceback

    try:
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()  # what an interpreter does at its end; os._exit does not
        sys.stdout.flush()
        sys.stderr.flush()


def _packed(request: list) -> bytes:
    packed = json.dumps(request).encode()
    if len(packed) > _MOST:
        raise OSError("too long")
    return packed


def _address(name: str, kind: str) -> str:
    return f"\0shardmerge-{os.getuid()}-{name}-{kind}"


def _peer(connection: socket.socket) -> int:
    """Return the user id at the other end."""
    row = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", row)[1]


def serve(name: str, kind: str) -> None:
    """Be the process that a run's jobs are forked from, until the run is over.

    Args:
        name: Names the run: the id of its process, and what else it likes after a hyphen.
        kind: PLAIN or TORCH.
    """
    global _run, _kind
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            run = os.pidfd_open(int(name.partition("-")[0]))
            listener.bind(_address(name, kind))
        except OSError:  # the run is over, or another job has started one
            return
        listener.listen(64)
        _run, _kind = name, kind
        gc.disable()  # a fifth of what importing torch takes
        for module in _PRELOADED[kind]:
            __import__(module)
        gc.freeze()  # so that forks share what they do not change
        _Server(listener, run).serve()
