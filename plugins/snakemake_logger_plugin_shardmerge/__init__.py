"""What a run is at, for `snakemake --logger shardmerge`: live in a terminal, else plain lines.

Snakemake finds it where this folder's parent is in PYTHONPATH, as `make demo` has it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # of this checkout

from shardmerge.base.printable import printable
from shardmerge.base.text import human_time, plural
from shardmerge.run.board import Board

#: Seconds between two lines on a job that runs long, where there is no terminal.
_EVERY = 60
#: Jobs that have a line each in a terminal.
_LINES = 8
#: Messages of Snakemake's that are for people who wait, by how they begin.
_TOLD = ("Nothing to be done", "Report created", "Will exit", "Terminating", "Waiting")
#: What Snakemake says of a failure besides, which its jobs say better.
_UNTOLD = (
    "At least one job did not complete",
    "CalledProcessError in file",
    "Exiting because a job",
    "Removing output files",
)


class LogHandler(LogHandlerBase):
    """Takes Snakemake's events and shows a run's state."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.console = Console(stderr=not self.common_settings.stdout, highlight=False)
        self.board = Board()
        self.live: Live | None = None
        self.told: set[str] = set()
        self.began = time.monotonic()
        self.over = threading.Event()
        self.as_usual = self.common_settings.dryrun

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(record, getattr(record, "event", None))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Take the live lines away and say how the run ended."""
        if not self.over.is_set():
            self.over.set()
            if self.live:
                self.live.stop()
            if self.board.total:
                self._end()
        super().close()

    def _take(self, record: logging.LogRecord, event: LogEvent | None) -> None:
        board = self.board
        if self.as_usual:
            self._print(self.format(record))
        elif event == LogEvent.RUN_INFO:
            board.total = board.total or dict(getattr(record, "stats", {})).get("total", 0)
            self._begin()
        elif event == LogEvent.JOB_INFO:
            board.announce(
                record.jobid,
                record.rule_name,
                dict(getattr(record, "wildcards", None) or {}),
                getattr(record, "log", None) or (),
                (getattr(record, "input", None) or (), getattr(record, "output", None) or ()),
            )
        elif event == LogEvent.JOB_FINISHED:
            self._finished(record.job_id)
        elif event == LogEvent.JOB_ERROR:
            board.fail(record.jobid)
        elif event is None or event == LogEvent.ERROR:
            self._message(record)

    def _begin(self) -> None:
        if self.live or self.over.is_set() or not self.board.total:
            return
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(
                get_renderable=self._picture,
                console=self.console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.live.start()
        elif not self.over.is_set():
            threading.Thread(target=self._tell_long_jobs, daemon=True).start()

    def _finished(self, number: int) -> None:
        job = self.board.jobs.get(number)
        line = self.board.finish(number)
        if self.live is None and job and job.makes:
            self._print(f"[{self.board.done}/{self.board.total}] {line or job.title}")
        elif line:
            self._print(line)

    def _message(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        wanted = record.levelno >= logging.WARNING or text.startswith(_TOLD)
        if wanted and text not in self.told and not any(part in text for part in _UNTOLD):
            self.told.add(text)
            self._print(text)

    def _tell_long_jobs(self) -> None:
        while not self.over.wait(_EVERY):
            for job in self.board.long_jobs():
                self._print(f"{job.title}: {job.progress(time.monotonic())[1]}")

    def _end(self) -> None:
        board, took = self.board, human_time(time.monotonic() - self.began)
        for line in board.ending():
            self._print(line)
        if not board.failed and board.done >= board.total:
            self._print(f"done: {plural(board.done, 'job')} in {took}")

    def _print(self, text: str | None) -> None:
        if text and text != "None":
            lines = "\n".join(printable(line) for line in text.splitlines())
            self.console.print(Text(lines), soft_wrap=True)

    def _picture(self) -> RenderableType:
        board, now = self.board, time.monotonic()
        table = Table.grid(padding=(0, 1))
        table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
        table.add_column(width=20)
        table.add_column(ratio=4, no_wrap=True, overflow="ellipsis")
        table.expand = True
        head = f"{board.done} of {plural(board.total, 'job')}"
        bar = ProgressBar(total=max(board.total, 1), completed=board.done, width=20)
        table.add_row(Text(head, "bold"), bar, Text(human_time(now - self.began)))
        jobs = list(board.long_jobs())
        for job in jobs[:_LINES]:
            percent, text = job.progress(now)
            bar = ProgressBar(total=100, completed=percent or 0, width=20)
            table.add_row(
                Text(f"  {job.title}"), bar if percent is not None else "", Text(text, "dim")
            )
        more = len(jobs) - _LINES
        return Group(table, Text(f"  and {more} more", "dim")) if more > 0 else table
