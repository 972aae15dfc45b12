"""Outputs appear whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardmerge.errors import UserError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside the target to write to; on success fsync it and rename it over the target.

    On an error what was written is removed and the target stays as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        publish(part, target)
    finally:
        part.unlink(missing_ok=True)


def publish(part: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Move a finished file to its name: mode 0666 less the umask, fsync, rename."""
    umask = os.umask(0)
    os.umask(umask)
    with open(part, "rb") as file:
        os.fchmod(file.fileno(), 0o666 & ~umask)
        os.fsync(file.fileno())
    os.replace(part, target)
    folder = os.open(Path(target).parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it
            os.fsync(folder)
    finally:
        os.close(folder)


def remove_stale(target: str | os.PathLike[str]) -> None:
    """Remove unfinished files of a target whose writers were killed: no one locks them.

    A lock is seen from other machines that share the file system too, a process number is not.
    """
    target = Path(target)
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError), open(part, "r+b") as file:
            if os.fstat(file.fileno()).st_nlink == 1:  # a hard link has no writer
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all; unfinished ones of killed writers go."""
    remove_stale(target)
    with atomic_path(target) as part, open(part, "x", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # where there are no locks, there is no clean-up
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(text)
        file.flush()


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write readable JSON (indented, keys sorted, a final newline) whole or not at all."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def load_json(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: If it cannot be read or is not an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})", str(path)) from None
    if not isinstance(value, dict):
        raise UserError("is not a JSON object", str(path))
    return value
