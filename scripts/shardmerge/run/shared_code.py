"""Machine code that a job made goes to the process it was forked from, and so to later jobs.

A job sends each object file as one packet, whole or not at all, and never waits: what does not fit
is made again by another job. The other process loads it, and what is forked from it later has it in
memory. Nothing is written to disk, and nobody but these processes has the channel.
"""

from __future__ import annotations

import contextlib
import socket

from shardmerge.engine import machine_code
from shardmerge.engine.machine_code import ObjectCode

#: Bytes of memory that code of jobs takes at most.
_ROOM = 64 << 20
_MOST = 1 << 20  # bytes of a packet


class SharedCode:
    """A channel for machine code from forks to the process that they are forked from."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._here.setblocking(False)
        self._there.setblocking(False)
        self._room = _ROOM

    def fileno(self) -> int:
        """Return the descriptor that has something to read when a job has made code."""
        return self._here.fileno()

    def take(self) -> None:
        """Load what has come, as long as there is room."""
        with contextlib.suppress(BlockingIOError):
            while True:
                names, _, data = self._here.recv(_MOST).partition(b"\n")
                made = ObjectCode(tuple(names.decode().split()), data)
                if made.room <= self._room and machine_code.take_over(made):
                    self._room -= made.room

    def send_from_here(self) -> None:
        """In a fork: send all code that is made from now on."""
        self._here.close()
        machine_code.tell_of_code(self._send)

    def _send(self, made: ObjectCode) -> None:
        packet = " ".join(made.names).encode() + b"\n" + made.data
        if len(packet) <= _MOST:
            with contextlib.suppress(OSError):  # too long, too many, or nobody is there
                self._there.send(packet)
