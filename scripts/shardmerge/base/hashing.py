"""A whole file's SHA-256, found while something else is done."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from shardmerge.base.errors import UserError

_CHUNK = 8 << 20


class FileHash(contextlib.AbstractContextManager):
    """The SHA-256 of a file, from a thread of its own; takes one buffer, whatever the file's size.

    Args:
        path: The file.
        keep: Whether what is read may stay in the page cache. Without, a file that was written
            past it does not push out what others read.
    """

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self._path, self._keep = path, keep
        self._error: OSError | None = None
        self._stopped = False
        self._hash = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="file-hash", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()

    def result(self) -> str:
        """Return the SHA-256, 64 hexadecimal digits, once all is read.

        Raises:
            UserError: If the file cannot be read.
        """
        self._thread.join()
        if self._error:
            raise UserError(f"cannot be read ({self._error.strerror})", str(self._path)) from None
        return self._hash.hexdigest()

    def _run(self) -> None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                self._read(file)
        except OSError as error:
            self._error = error

    def _read(self, file: FileIO) -> None:
        fd, buffer, place = file.fileno(), memoryview(bytearray(_CHUNK)), 0
        _advise(fd, place, 0, "POSIX_FADV_SEQUENTIAL")
        while not self._stopped and (count := file.readinto(buffer)):
            self._hash.update(buffer[:count])
            if not self._keep:
                _advise(fd, place, count, "POSIX_FADV_DONTNEED")
            place += count


def sha256_streamed(path: Path) -> str:
    """Return the SHA-256 of a file that others will read too.

    Raises:
        UserError: If it cannot be read.
    """
    with FileHash(path, keep=True) as found:
        return found.result()


def _advise(fd: int, offset: int, length: int, advice: str) -> None:
    if hasattr(os, advice):
        os.posix_fadvise(fd, offset, length, getattr(os, advice))


def sums_text(sums: Mapping[str, str]) -> str:
    """Return the text of SHA256SUMS, as ``sha256sum --check`` reads it.

    Args:
        sums: SHA-256 by name.
    """
    return "".join(_sum_line(name, sums[name]) for name in sorted(sums))


def _sum_line(name: str, sha256: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{sha256}  {escaped}\n"
