"""What a job tells of itself when it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shardmerge.methods.contract import Recorded

PHASES = ("start", "read", "compute", "write", "hash")


@dataclass(frozen=True)
class ShardRecord:
    """What building one shard took and what it found.

    Args:
        sha256: Of the output, 64 hexadecimal digits.
        xxh3: Of the output and that SHA-256 behind it (``base.hashing.bound_hash``), 32
            hexadecimal digits: by it a check reads all bytes faster than by SHA-256.
        size: Bytes of the output.
        bytes_read, bytes_written: That passed through this process.
        seconds: Busy time of each phase, summed over threads (start, read, compute, write, hash),
            and the wall time (total).
        nonfinite: For each tensor that ``allow_nonfinite`` let pass, the number of infinite or
            NaN elements where no source has one.
        deltas: For each output tensor that is made of task vectors, a row for each: the models
            that it is made of (fine-tuned first), its sum of squares, and its base's (None where
            the task vector was read from a file: it is in the record of the job that wrote it).
        whole_copy: Whether the output is a source file byte for byte.
        hashed: For each source file that is known by a sample and was read whole, its identity
            and the SHA-256 that it has.
        tensors: For a shard of task vectors, the XXH3 of each tensor's bytes, so that who reads
            one knows that it is as it was written.
        passes: For each tensor with methods in passes, what was found for each call: the base64 of
            float64 [sums, tiles] for sums and counts, six numbers for each band of ranks, and a
            seventh where ranks depend on it: how many values are not 0. Behind bands, and keys of
            some ranks, the base64 of int32 [bands, tiles]: how many elements of each tile lie in
            ``engine.telling``'s bands, where one pass found that.
        probes: For each tensor with calls that are too large to be recomputed by a check, for each
            of them sampled elements and products with random vectors (``methods.kernels.probes``).
        peak_memory: The most memory of its own that the process had so far, in bytes.
    """

    sha256: str
    xxh3: str
    size: int
    bytes_read: int
    bytes_written: int
    seconds: dict[str, float] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    deltas: dict[str, list[list[Any]]] = field(default_factory=dict)
    whole_copy: bool = False
    hashed: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    passes: dict[str, list[list[Any]]] = field(default_factory=dict)
    probes: dict[str, list[Recorded]] = field(default_factory=dict)
    peak_memory: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-able data."""
        return dataclasses.asdict(self)


class Tally:
    """Counters that the threads of a job share.

    Args:
        began: When the job began, in seconds of ``time.perf_counter``; by default now.
    """

    def __init__(self, began: float | None = None) -> None:
        now = time.perf_counter()
        self._lock = threading.Lock()
        self._began = now if began is None else began
        self._seconds = dict.fromkeys(PHASES, 0.0) | {"start": now - self._began}
        self._squares: dict[tuple[str, int], list[tuple[float, float | None]]] = defaultdict(list)
        self.nonfinite: dict[str, int] = {}
        self.passes: dict[str, list[list[Any]]] = {}
        self._probes: dict[str, dict[int, Recorded]] = defaultdict(dict)
        self.read = 0
        self.written = 0

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time within as a phase's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(seconds={phase: time.perf_counter() - began})

    def add(
        self, *, seconds: dict[str, float] | None = None, read: int = 0, written: int = 0
    ) -> None:
        """Add to the counters."""
        with self._lock:
            self.read += read
            self.written += written
            for phase, value in (seconds or {}).items():
                self._seconds[phase] += value

    def add_nonfinite(self, tensor: str, count: int) -> None:
        """Add to a tensor's number of new infinite or NaN elements."""
        with self._lock:
            self.nonfinite[tensor] = self.nonfinite.get(tensor, 0) + count

    def add_passes(self, tensor: str, answers: list[list[Any]]) -> None:
        """Note what the passes of a tensor's calls found."""
        with self._lock:
            self.passes[tensor] = answers

    def add_probes(self, tensor: str, number: int, recorded: Recorded) -> None:
        """Note what was recorded of a tensor's call, by its number among the tensor's."""
        with self._lock:
            self._probes[tensor][number] = recorded

    @property
    def probes(self) -> dict[str, list[Recorded]]:
        """What was recorded of each tensor's calls, in their order."""
        return {
            tensor: [found for _, found in sorted(calls.items())]
            for tensor, calls in sorted(self._probes.items())
        }

    def add_squares(self, tensor: str, delta: int, own: float, base: float | None) -> None:
        """Add a block's sums of squares of a tensor's task vector and of its base."""
        with self._lock:
            self._squares[tensor, delta].append((own, base))

    def squares(self, tensor: str, delta: int) -> tuple[float, float | None] | None:
        """Return the sums over all blocks, or None if there is none.

        Summed exactly, so that the order in which threads brought them changes nothing.
        """
        rows = self._squares.get((tensor, delta))
        if not rows:
            return None
        own = math.fsum(row[0] for row in rows)
        if any(base is None for _, base in rows):
            return own, None
        return own, math.fsum(base for _, base in rows if base is not None)

    def seconds(self) -> dict[str, float]:
        """Return each phase's seconds and the total since the start, to the tenth of a ms."""
        total = time.perf_counter() - self._began
        return {k: round(v, 4) for k, v in {**self._seconds, "total": total}.items()}


def peak_memory() -> int:
    """Return the most memory of its own that this process had so far, in bytes.

    The largest resident set, without the pages of files that are mapped now: those are the code of
    libraries, which jobs share and the kernel can take back. How much of it is resident is the
    kernel's choice: the same libraries take 70 MB on one machine and 165 MB on another.
    Linux's VmHWM where there is one: ru_maxrss survives ``exec`` and so may be a parent's.
    """
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        told = dict(line.split(":", 1) for line in file)
        if "VmHWM" in told:
            parts = (told.get(name, "0").split()[0] for name in ("VmHWM", "RssFile"))
            largest, mapped = (int(part) * 1024 for part in parts)
            return largest - mapped
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
