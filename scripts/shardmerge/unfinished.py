"""Unfinished files beside their outputs: how they are called, and when they go."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from pathlib import Path


def part_path(target: str | os.PathLike[str]) -> Path:
    """Return a new path beside an output to write it to, before it gets its name."""
    target = Path(target)
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")


def remove_parts(target: str | os.PathLike[str], older_than: float = 0) -> None:
    """Remove unfinished files of an output, which are nobody's once it is claimed.

    Args:
        target: The output.
        older_than: Seconds since a part was last written to, for who does not hold the claim.
    """
    target = Path(target)
    now = time.time()
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):
            if not older_than or now - part.stat().st_mtime > older_than:
                part.unlink()
