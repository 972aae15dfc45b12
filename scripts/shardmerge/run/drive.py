"""What a command that runs Snakemake again and again, and these runs, tell each other.

`shardmerge search` and `shardmerge sweep` do it by two variables of the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.files import write_json

#: Path of a file in which a run tells how its sweeps stand; nothing is told without it. Beside it
#: is another one if jobs failed and all others were run that could be.
STATE = "SHARDMERGE_STATE"
#: Set where jobs of the run before failed: what it should have measured and did not has failed.
JOBS_FAILED = "SHARDMERGE_JOBS_FAILED"


def follows_failed_jobs() -> bool:
    """Return whether jobs of the run before failed."""
    return bool(os.environ.get(JOBS_FAILED))


def tell_failed() -> None:
    """Tell the command, if it asks for it, that jobs failed and no other can run."""
    if path := os.environ.get(STATE):
        jobs_failed_path(path).touch()


def jobs_failed_path(state: str | os.PathLike[str]) -> Path:
    """Return the path of what tells that jobs failed, beside that of the state."""
    return Path(f"{os.fspath(state)}.failed")


def tell_state(states: Mapping[str, Mapping[str, Any]]) -> None:
    """Tell the command how sweeps stand, by name, if it asks for it."""
    if path := os.environ.get(STATE):
        write_json(Path(path), states)
