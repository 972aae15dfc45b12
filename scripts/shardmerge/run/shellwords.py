"""What all jobs' commands begin with. All other words of a command are quoted in its rule."""

from __future__ import annotations

import shlex
from pathlib import Path


def shell_prefix(scripts: Path, python: Path | None, worker: str) -> str:
    """Return the start of every shell command, for Snakemake to format.

    Args:
        scripts: Folder of the scripts.
        python: Folder of the interpreter, or None to take the one on the path.
        worker: Commands that tell jobs of a process that they share.
    """
    text = f"set -euo pipefail; export SCRIPTS={shlex.quote(str(scripts))}; {worker}"
    if python:
        text += f'export PATH={shlex.quote(str(python))}:"$PATH"; '
    return text.replace("{", "{{").replace("}", "}}")
