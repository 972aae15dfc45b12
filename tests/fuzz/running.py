"""Runs cases in processes of their own, so that one that hangs or is killed is known."""

from __future__ import annotations

import hashlib
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.mutation import Mutate
from shardmerge.base.errors import UserError

#: Seconds of processor time, and bytes of memory, that a case may take.
SECONDS = 5.0
MEMORY = 1 << 30
#: Seconds after which a process that answers nothing is killed.
_PATIENCE = 30.0
_BATCH = 500
#: Takes a target, its cases and the seconds that they took, and the faults that are new.
Report = Callable[["Target", int, float, list["Fault"]], None]


@dataclass(frozen=True)
class Target:
    """Something that reads what strangers write.

    Args:
        name: Of the folder of its corpus.
        seeds: Real inputs.
        mutate: Makes others of them.
        run: Reads one; ends in success or in a UserError.
    """

    name: str
    seeds: tuple[bytes, ...]
    mutate: Mutate
    run: Callable[[bytes], object]


@dataclass(frozen=True)
class Fault:
    """A case that ended in something else than success or one sentence.

    Args:
        place: What and where, alike for all cases of one cause.
        data: The case.
        trace: Of it, if it left one.
    """

    place: str
    data: bytes
    trace: str


class _TooLong(BaseException):
    """The time is up."""


def attempt(target: Target, data: bytes) -> tuple[str, str] | None:
    """Run a case here; return place and trace of a fault, or None."""
    try:
        target.run(data)
    except UserError as error:
        try:
            str(error).encode()
        except UnicodeEncodeError:
            return "a message that cannot be printed", str(error).encode(
                "utf-8", "replace"
            ).decode()
        if len(str(error)) > 20_000:
            return f"a message of {len(str(error))} characters", str(error)[:500]
    except (Exception, _TooLong) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/shardmerge/" in f.filename] or frames
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return f"{type(error).__name__} at {place}", traceback.format_exc(limit=-12)[-4000:]
    return None


def cases(target: Target, seed: int) -> Iterator[bytes]:
    """Yield a target's cases of a seed, always the same, without an end."""
    rng = random.Random(f"{target.name}/{seed}")
    while True:
        yield target.mutate(rng, rng.choice(target.seeds))


def run_cases(target: Target, seed: int, count: int) -> list[Fault]:
    """Return the faults of so many cases of a seed, each place once."""
    made = [data for _, data in zip(range(count), cases(target, seed), strict=False)]
    found: dict[str, Fault] = {}
    first = 0
    while first < count:
        done, faults = _in_child(target, made[first:])
        for fault in faults:
            found.setdefault(fault.place, fault)
        first += done
    return list(found.values())


def name_of(fault: Fault) -> str:
    """Return a file's name for a case: of its content."""
    return hashlib.sha256(fault.data).hexdigest()[:16]


def _in_child(target: Target, made: list[bytes]) -> tuple[int, list[Fault]]:
    """Run cases in a process; return how many are done, and their faults.

    One that kills the process is the last of them.
    """
    place = mmap.mmap(-1, 8)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _work(target, made, place, write)
    os.close(write)
    faults, killed = _answer(read, child, place)
    if not killed:
        return len(made), faults
    (index,) = struct.unpack("q", place[:8])
    return index + 1, [*faults, Fault(f"{target.name}: {killed}", made[index], "")]


def _work(target: Target, made: list[bytes], place: mmap.mmap, write: int) -> None:
    """Be the child: limit memory and time, run the cases, send the faults, end."""

    def ring(*_: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGVTALRM, ring)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with os.fdopen(write, "wb") as pipe:
        for index, data in enumerate(made):
            place[:8] = struct.pack("q", index)
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                fault = attempt(target, data)
            except _TooLong:
                fault = ("the time is up", "")
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            if fault:
                pickle.dump(Fault(fault[0], data, fault[1]), pipe)
                pipe.flush()
        pickle.dump(None, pipe)
    os._exit(0)


def _answer(read: int, child: int, place: mmap.mmap) -> tuple[list[Fault], str | None]:
    """Return a child's faults, and what killed it if something did."""
    faults, ended, done = [], None, False
    seen = b""

    def look(*_: object) -> None:
        nonlocal seen
        if place[:8] == seen:  # nothing of Python's ran, so that no timer could ring
            os.kill(child, signal.SIGKILL)
        seen = place[:8]

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)
    with os.fdopen(read, "rb") as pipe:
        while True:
            try:
                fault = pickle.load(pipe)
            except (EOFError, pickle.UnpicklingError):
                break
            if fault is None:
                done = True
                break
            faults.append(fault)
    signal.setitimer(signal.ITIMER_REAL, 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not done:
        ended = f"the process ended with {status}"
    return faults, ended


def run_for(targets: list[Target], seconds: float, seed: int, report: Report) -> None:
    """Run all targets in turn for a time.

    Args:
        targets: What is run.
        seconds: Altogether; every target has its share.
        seed: Of the first batch; those after it count up.
        report: Takes what each target came to.
    """
    end = time.monotonic() + seconds
    for number, target in enumerate(targets):
        share = (end - time.monotonic()) / (len(targets) - number)
        begin, taken, done, batch = time.monotonic(), 0.0, 0, 20
        found: dict[str, Fault] = {}
        while not done or taken < share:
            for fault in run_cases(target, seed + done, batch):
                found.setdefault(fault.place, fault)
            done += batch
            taken = time.monotonic() - begin
            batch = max(1, min(_BATCH, round(done / taken * (share - taken))))
        report(target, done, taken, list(found.values()))
