"""Where the time of a whole build goes: to Snakemake, to our files, to jobs."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shardmerge.base.markdown import table
from tools.bench.builds import ROOT, TRIVIAL

#: What is looked at: nothing is there yet, and all is there; besides, a workflow of trivial jobs.
_BUILD = ["-s", str(ROOT / "Snakefile"), "--cores", "2", "models", "--quiet", "all"]
_ORDER = ("interpreter", "imports", "rules", "plan", "graph", "scheduling", "other", "end")
_COUNTS = (1, 40, 160)
Phases = dict[str, dict[str, float]]


def compare(runs: int, say: Callable[[str], None]) -> None:
    """Measure the demo's build, its second run and trivial jobs; tell medians of so many runs."""
    columns: dict[str, list[Phases]] = {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="shardmerge-phases-") as name:
            folder = Path(name)
            columns.setdefault("the demo", []).append(measure(_BUILD, folder))
            columns.setdefault("again", []).append(measure(_BUILD, folder))
        for count in _COUNTS:
            with tempfile.TemporaryDirectory(prefix="shardmerge-phases-") as name:
                (Path(name) / "Snakefile").write_text(TRIVIAL)
                words = ["--cores", "2", "--quiet", "all", "--config", f"count={count}"]
                found = measure(words, Path(name))
                columns.setdefault(f"{count} trivial jobs", []).append(found)
    for clock, what in (("cpu", "Seconds of processor time"), ("wall", "Seconds")):
        say(f"\n{what}, medians of {runs}:\n{phases_table(columns, clock)}")


def measure(words: Sequence[str], folder: Path) -> Phases:
    """Run Snakemake in a folder; return seconds of processor and clock by phase.

    Args:
        words: Of its command line.
        folder: Where it runs.
    """
    output = folder / "phases.json"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    start, before = time.time(), _used()
    subprocess.run(
        [sys.executable, "-m", "tools.bench.sampled", str(output), *words],
        cwd=folder, env=env, check=True, capture_output=True,
    )  # fmt: skip
    found = json.loads(output.read_text())
    until = found.pop("until")
    # what is before the first look and after the last one
    found["wall"] |= {"interpreter": until["began"] - start, "end": time.time() - until["ends"]}
    found["cpu"]["end"] = _used() - before - until["cpu"]
    return found


def phases_table(columns: dict[str, list[Phases]], clock: str) -> str:
    """Return a table of medians: a row for each phase, a column for each workflow."""
    rows = []
    for phase in (*_ORDER, "jobs") if clock == "cpu" else _ORDER:
        values = [[run[clock].get(phase, 0.0) for run in runs] for runs in columns.values()]
        rows.append([phase, *(f"{statistics.median(found):.2f}" for found in values)])
    return table(["Phase", *columns], rows)


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
