"""Processes that jobs are forked from, as tests start them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shardmerge.run import worker

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def until(condition: Any, seconds: Any = 300) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.02)


def run_name(pid: Any = None) -> str:
    """Return a new name for a run of a process, by default of this one."""
    return f"{pid or os.getpid()}-{secrets.token_hex(4)}"


def until_reachable(name: Any) -> None:
    """Wait until a shared process of that name is reachable."""
    until(lambda: name in Path("/proc/net/unix").read_text())


def serve(name: Any, kind: Any = worker.PLAIN, before: str = "", **options: Any) -> Any:
    """Start a shared process.

    Args:
        name: Of the run.
        kind: As for ``forking.serve``.
        before: Python that it executes first.
        options: Of ``subprocess.Popen``.
    """
    code = f"import sys; sys.path[0] = {str(SCRIPTS)!r}; {before}\n"
    code += f"from shardmerge.run import forking; forking.serve({name!r}, {kind!r})"
    return subprocess.Popen([sys.executable, "-c", code], **options)
