"""The file of a claim: made in one step or not at all, on local and shared file systems."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from shardmerge.owner import Owner


@dataclass(frozen=True)
class Seen:
    """A claim's owner, and when it gave its last sign of life by the file system's clock."""

    owner: Owner
    touched: float


def create(path: Path, text: str) -> bool:
    """Make a file whole that must not exist yet; return whether it was made.

    Raises:
        OSError: If its folder cannot be written to.
    """
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        try:
            os.link(fresh, path)
            return True
        except FileExistsError:
            # On NFS the answer to a link that was made can be lost, and the second says so.
            with contextlib.suppress(FileNotFoundError):
                return fresh.stat().st_nlink == 2
            return False
        except FileNotFoundError:  # a new owner removed the fresh file
            return False
        except OSError:
            pass  # a file system without hard links
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            file.write(text)
            return True
        return False
    finally:
        fresh.unlink(missing_ok=True)


def read(path: Path) -> Seen | None:
    """Return a claim's owner and its last sign of life, or None if there is no claim."""
    try:
        with open(path, encoding="utf-8") as file:  # opening makes NFS ask the server
            status, text = os.fstat(file.fileno()), file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        try:
            status, text = path.stat(), ""
        except FileNotFoundError:
            return None
    return Seen(Owner.from_text(text, status), status.st_mtime)


def age(path: Path, seen: Seen) -> float:
    """Return seconds since the last sign of life, both times by the file system's own clock."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        probe.touch()
        return probe.stat().st_mtime - seen.touched
    except FileNotFoundError:
        return 0
    finally:
        probe.unlink(missing_ok=True)
