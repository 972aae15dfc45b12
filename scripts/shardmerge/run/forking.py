"""The process that a run's jobs are forked from; ``worker`` is what jobs and runs see of it."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass

from shardmerge.run.worker import (
    COMPRESSED,
    MOST,
    PLAIN,
    TORCH,
    address_of,
    become,
    began,
    begin,
    peer_of,
    unpack_request,
)

#: Imported before the first job: all that merging, checking and packaging a model needs.
_PLAIN = (
    "argparse",
    "numpy.random",
    "shardmerge.base.malloc",
    "shardmerge.engine.native_lane",
    "shardmerge.methods",
    "shardmerge.methods.blending.passes",
    "shardmerge.methods.localized.competition",
    "shardmerge.methods.localized.passes",
    "shardmerge.methods.measured.passes",
    "shardmerge.methods.spherical.passes",
    "shardmerge.methods.task_vectors.kept",
    "shardmerge.methods.task_vectors.passes",
    "shardmerge.plan.files",
    "shardmerge.plan.records",
    "shardmerge.check.shard",
    "shardmerge.package.card",
    "shardmerge.package.card_scores",
    "shardmerge.package.config",
    "shardmerge.package.index",
    "shardmerge.package.provenance",
    "shardmerge.package.verify",
    "shardmerge.run.cli",
    "shardmerge.run.inputlists",
    "shardmerge.run.progress",
    "shardmerge.run.runs",
    "shardmerge.run.shard_inputs",
    "shardmerge.run.shared_code",
    "xxhash",
)
_PRELOADED = {
    PLAIN: _PLAIN,
    TORCH: (*_PLAIN, "shardmerge.engine.torch_lane"),
    COMPRESSED: (
        *_PLAIN,
        "torch",
        "compressed_tensors.compressors",
        "compressed_tensors.quantization",
        "shardmerge.export.compressed_making",
        "shardmerge.export.jobs",
    ),
}


@dataclass
class _Fork:
    pid: int
    watched: int
    connection: socket.socket


class _Server:
    """Forks a process for each request, passes its status on, ends it where its client is gone."""

    def __init__(self, listener: socket.socket, run: int) -> None:
        from shardmerge.run.shared_code import SharedCode  # slow to load, and so once listening

        self._listener = listener
        self._run = run
        self._over = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(run, selectors.EVENT_READ)
        self._code = SharedCode()
        self._selector.register(self._code, selectors.EVENT_READ)
        self._forks: list[_Fork] = []

    def serve(self) -> None:
        """Take jobs until the run is over and all are done."""
        while self._forks or not self._over:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._code:
                    self._code.take()
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
        message, descriptors, _, _ = socket.recv_fds(connection, MOST, 3)
        process, user = peer_of(connection)
        if user != os.getuid() or len(descriptors) != 3:
            connection.close()
            return
        self._code.take()  # so that the fork has it
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # the fork would write it once more
        pid = os.fork()
        if not pid:
            connection.close()
            self._selector.close()
            self._listener.close()
            os.close(self._run)
            self._code.send_from_here()
            _run_here(message, descriptors, process)
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


def _run_here(request: bytes, descriptors: list[int], process: int) -> None:
    """Be the client's process: its files, folder, environment and script; never returns."""
    status = 1
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _open_streams()
        sys.argv, folder, environment, at = unpack_request(request)
        begin(began(process) if at is None else at)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        gc.enable()
        status = _status_of(sys.argv[0])
    finally:
        os._exit(status)


def _open_streams() -> None:
    """Open ``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` anew, as an interpreter does at start.

    Those of the process that this one is forked from know another file: whether it can be sought
    in, where it ends, whether it is a terminal. Encodings are kept, as they come from the
    environment of the run.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        through = before.write_through  # python -u
        mode, size = ("wb", 0 if through else -1) if number else ("rb", -1)
        binary = open(number, mode, size, closefd=False)  # noqa: SIM115
        raw = getattr(binary, "raw", binary)
        raw.name = f"<{name}>"
        text = io.TextIOWrapper(
            binary,
            before.encoding,
            before.errors,
            newline="\n",
            line_buffering=not through and (number == 2 or raw.isatty()),
            write_through=through,
        )
        text.mode = mode[0]
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _status_of(script: str) -> int:
    import atexit
    import traceback

    try:
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        _flush_libraries()
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        # what an interpreter does at its end; os._exit does not
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        _flush_libraries()


def _flush_libraries() -> None:
    """Write what libraries have told C's streams."""
    import ctypes

    ctypes.pythonapi.fflush(None)


def serve(name: str, kind: str) -> None:
    """Be the process that a run's jobs are forked from, until the run is over.

    Args:
        name: Names the run: the id of its process, and what else it likes after a hyphen.
        kind: PLAIN, TORCH or COMPRESSED.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            run = os.pidfd_open(int(name.partition("-")[0]))
            listener.bind(address_of(name, kind))
        except OSError:  # the run is over, or another job has started one
            return
        listener.listen(64)
        become(name, kind)
        gc.disable()  # a fifth of what importing torch takes
        for module in _PRELOADED[kind]:
            __import__(module)
        gc.freeze()  # so that forks share what they do not change
        _Server(listener, run).serve()
