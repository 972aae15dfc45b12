"""The file of a claim: made in one step or not at all, on local and shared file systems."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.owner import Owner

#: Bytes of a claim: more is none of ours.
_MOST = 1 << 16


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
        status, data = _content(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # not for us to read, or a link, which no claim is
        try:
            status, data = path.lstat(), b""
        except FileNotFoundError:
            return None
    text = data.decode(errors="surrogateescape")
    return Seen(Owner.from_text(text, status), status.st_mtime)


def _content(path: Path) -> tuple[os.stat_result, bytes]:
    """Return a file's status and what it begins with; nothing of what is no plain file."""
    # opening makes NFS ask the server; a pipe without a writer would wait for one
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        return status, os.read(descriptor, _MOST) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)


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
