"""What a run is at, in words: the jobs that run, how far each is, what failed and why.

How far a job is it says in its log: lines with a percentage, as merges, downloads and lm-eval write
them. Nothing else is asked of jobs.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from shardmerge.base.printable import printable
from shardmerge.base.text import human_time

#: What the rules that may take long do.
_DOING = {
    "fetch_file": "fetching",
    "convert_pickle": "converting",
    "hash_source": "hashing",
    "store_delta": "storing",
    "check_delta": "checking",
    "merge_shard": "merging",
    "check_shard": "checking",
    "make_source": "making",
    "write_update": "computing",
    "check_update": "checking",
    "build_factors": "decomposing",
    "check_factors": "checking",
    "verify_model": "verifying",
    "load_model": "loading",
    "run_task": "benchmarking",
    "run_tasks": "benchmarking",
    "measure_trial": "benchmarking",
    "keep_logits": "predicting with",
    "convert_gguf": "converting",
    "measure_importance": "measuring importance of",
    "quantize_gguf": "quantising",
    "check_gguf": "checking",
    "compress_shard": "quantising",
    "compare_shard": "comparing",
    "check_compressed": "checking",
    "publish_model": "uploading",
    "publish_export": "uploading",
    "publish_adapter": "uploading",
}
#: What is worth a line of its own when it is done.
_DONE = {
    "verify_model": "verified",
    "load_model": "loaded by transformers",
    "run_task": "benchmarked",
    "run_tasks": "benchmarked",
    "measure_trial": "benchmarked",
    "package_adapter": "finished adapter",
    "package_export": "exported",
    "publish_model": "uploaded",
    "publish_export": "uploaded",
    "publish_adapter": "uploaded",
}
_PERCENT = re.compile(r"(\d{1,3})(?:\.\d+)? ?%")
#: Bytes of a log's end that are looked at.
_TAIL = 8192


@dataclass
class RunningJob:
    """A job that was announced.

    Args:
        rule: Its rule.
        about: What it works on: a model, a shard, a task.
        logs: Its log files.
        makes: Files that it makes; of a target, what was asked for.
        began: When it was started, by the board's clock.
    """

    rule: str
    about: str
    logs: tuple[str, ...]
    makes: tuple[str, ...]
    began: float

    @property
    def title(self) -> str:
        """Return what it does to what."""
        doing = _DOING.get(self.rule, self.rule.replace("_", " "))
        return f"{doing} {self.about}".strip()

    def progress(self, now: float) -> tuple[int | None, str]:
        """Return how many percent are done, if that is known, and what to say of it."""
        line = next((line for log in self.logs if (line := last_line(log))), "")
        found = _PERCENT.search(line)
        seconds = now - self.began
        if not found:
            return None, human_time(seconds)
        percent = min(100, int(found[1]))
        text = line.rpartition(": ")[2] if "|" not in line else ""
        if "left" not in text and 0 < percent < 100:
            text += f", {human_time(seconds * (100 - percent) / percent)} left"
        return percent, text.lstrip(" ,") or human_time(seconds)


@dataclass
class Board:
    """The state of a run.

    Args:
        clock: Gives seconds.
    """

    clock: Callable[[], float] = time.monotonic
    done: int = 0
    total: int = 0
    jobs: dict[int, RunningJob] = field(default_factory=dict)
    running: dict[int, RunningJob] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def announce(
        self,
        number: int,
        rule: str,
        wildcards: Mapping[str, str],
        logs: Iterable[str],
        files: tuple[Iterable[str], Iterable[str]],
    ) -> None:
        """Take a job that begins, for the first time or again.

        Args:
            number: Snakemake's.
            rule: Its rule.
            wildcards: Their values.
            logs: Its log files.
            files: What it reads and what it makes.
        """
        needs, makes = map(tuple, files)
        about = " ".join(dict.fromkeys(str(value) for value in wildcards.values()))
        job = RunningJob(rule, printable(about), tuple(logs), makes, self.clock())
        self.jobs[number] = job
        self.failed.pop(job.title, None)
        if makes:
            self.running[number] = job
        else:  # a target: what it needs is what was asked for
            self.asked += needs

    def finish(self, number: int) -> str | None:
        """Take a job that is done; return a line on it if it is worth one."""
        job = self.running.pop(number, None) or self.jobs.get(number)
        self.done += 1
        if job is None or job.rule not in _DONE:
            return None
        seconds = self.clock() - job.began
        return f"{_DONE[job.rule]} {job.about} ({human_time(seconds)})"

    def fail(self, number: int) -> None:
        """Take a job that failed, with the sentence that its log ends with."""
        job = self.running.pop(number, None) or self.jobs.get(number)
        if job:
            log = job.logs[0] if job.logs else ""
            self.failed[job.title] = f"{reason(log)}\n  all of it: {log}" if log else ""

    def long_jobs(self) -> list[RunningJob]:
        """Return the running jobs that may take long, the longest first."""
        jobs = [job for job in self.running.values() if job.rule in _DOING]
        return sorted(jobs, key=lambda job: job.began)

    def ending(self) -> list[str]:
        """Return the lines that a run ends with: what failed and why, or where its results are."""
        if self.failed:
            return [f"error: {title}: {why}" for title, why in self.failed.items()]
        return [f"{what}: {path}" for what, path in _places(self.asked)]


def last_line(path: str) -> str:
    """Return the last line of a log that says something, as it is shown in a terminal."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", _tail(path)) if line.strip()]
    return printable(lines[-1]) if lines else ""


def reason(path: str) -> str:
    """Return the error that a log tells, with its hint; its last line if it tells none."""
    text = _tail(path)
    _, found, after = text.rpartition("error: ")
    told = [line for line in after.splitlines() if line.strip()] if found else []
    return "\n".join(printable(line) for line in told[:6]) or last_line(path) or "it says nothing"


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError:
        return ""


def _places(files: Iterable[str]) -> list[tuple[str, str]]:
    """Return where a user finds what a run made, once each."""
    found: dict[tuple[str, str], None] = {}
    for path in map(PurePath, files):
        if path.name == "SHA256SUMS":
            found[_kind(path.parent), str(path.parent)] = None
        elif path.name == "table.json":
            found["benchmarks", str(path.with_suffix(".md"))] = None
        elif path.name == "best.yaml":
            found["best recipe", str(path)] = None
        elif path.name == "compare.html":
            found["comparison", str(path)] = None
        elif path.parent.name == "report":
            found["plots", str(path.parent)] = None
        elif path.name.endswith("published.json"):
            found["receipt", str(path)] = None
    return list(found)


def _kind(package: PurePath) -> str:
    """Return what a finished folder is: a model, an adapter or an export."""
    if package.parent.name == "exports":
        return "export"
    return "adapter" if package.name == "adapter" else "model"
