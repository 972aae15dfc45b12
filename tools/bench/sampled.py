"""Run Snakemake and note where its own process is, many times a second of the clock and of its CPU.

    python -m tools.bench.sampled OUTPUT [arguments of snakemake]

The output is JSON: for each phase seconds of the processor and of the clock, what came before the
first look and jobs among them, and how much of both was spent when this process had begun to end.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_EVERY = 0.002
#: A phase and what is running in it: the end of a file's name, and the function if not any.
#: The innermost call that is listed decides.
_PHASES = (
    ("imports", "importlib._bootstrap>", None),
    ("plan", "shardmerge/plan/decide.py", "decide"),
    ("plan", "shardmerge/recipe/settings.py", None),
    ("rules", "snakemake/parser.py", None),
    ("rules", "snakemake/workflow.py", "include"),
    ("graph", "snakemake/dag.py", None),
    ("scheduling", "snakemake/scheduling/job_scheduler.py", None),
)


class Sampler:
    """Counts in which phase the process is, by two clocks."""

    def __init__(self) -> None:
        self.before = _used(resource.RUSAGE_SELF)
        self.began = time.time()
        self.looks = {signal.SIGPROF: Counter[str](), signal.SIGALRM: Counter[str]()}
        for kind, timer in ((signal.SIGPROF, signal.ITIMER_PROF),
                            (signal.SIGALRM, signal.ITIMER_REAL)):  # fmt: skip
            signal.signal(kind, self._look)
            signal.setitimer(timer, _EVERY, _EVERY)

    def _look(self, kind: int, frame: FrameType | None) -> None:
        self.looks[signal.Signals(kind)][_phase(frame)] += 1

    def result(self) -> dict[str, dict[str, float]]:
        """Stop, and return seconds of the processor and of the clock by phase."""
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        now = time.time()
        wall = now - self.began
        used = _used(resource.RUSAGE_SELF) - self.before
        spent = used + self.before + _used(resource.RUSAGE_CHILDREN)
        cpu = _shares(self.looks[signal.SIGPROF], used)
        cpu |= {"interpreter": self.before, "jobs": _of_jobs()}
        return {
            "cpu": cpu,
            "wall": _shares(self.looks[signal.SIGALRM], wall),
            "until": {"began": self.began, "ends": now, "cpu": spent},
        }


def _shares(looks: Counter[str], seconds: float) -> dict[str, float]:
    total = sum(looks.values()) or 1
    return {phase: seconds * count / total for phase, count in looks.items()}


def _phase(frame: FrameType | None) -> str:
    while frame is not None:
        code = frame.f_code
        for phase, file, function in _PHASES:
            if code.co_filename.endswith(file) and function in (None, code.co_name):
                return phase
        frame = frame.f_back
    return "other"


def _used(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


def _of_jobs() -> float:
    """Return the processor time of all processes that this one started, those that live too."""
    ticks = os.sysconf("SC_CLK_TCK")
    rows = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        rows[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15])) / ticks
    found, own = _used(resource.RUSAGE_CHILDREN), {os.getpid()}
    while more := {pid for pid, (parent, _) in rows.items() if parent in own} - own:
        found += sum(rows[pid][1] for pid in more)
        own |= more
    return found


def main() -> None:
    output, *words = sys.argv[1:]
    sampler = Sampler()

    def note() -> None:
        Path(output).write_text(json.dumps(sampler.result()))

    atexit.register(note)
    from snakemake.cli import main as snakemake

    sys.argv = ["snakemake", *words]
    snakemake(words)


if __name__ == "__main__":
    main()
