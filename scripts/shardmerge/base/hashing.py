"""Hashes of bytes that are read or written anyway, and of whole files beside something else."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from shardmerge.base.direct import go_buffered, is_refusal, open_direct
from shardmerge.base.errors import UserError
from shardmerge.base.files import read_into

#: What stays in a core's own cache, between the copy from the page cache and the hash.
_CHUNK = 1 << 20


class Hasher(Protocol):
    """What ``hashlib`` gives."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the digest so far."""


def quick_hasher() -> Hasher:
    """Return an empty XXH3 of 128 bits, which takes bytes as fast as memory gives them.

    No accident goes by it. It is none against forgery: what is published has its SHA-256 besides.
    https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
    """
    import xxhash  # environments of jobs that neither make nor check shards have none

    return xxhash.xxh3_128()


def hasher_like(digest: str) -> Hasher:
    """Return an empty hash of the kind that a digest is of: 32 digits of XXH3, 64 of SHA-256."""
    return quick_hasher() if len(digest) == 32 else hashlib.sha256()


def bound_hash(hasher: Hasher, sha256: str) -> str:
    """Return the hash of a file and, as its last bytes, of the file's SHA-256.

    Where the two are noted side by side, a change of either is found.

    Args:
        hasher: Has taken all bytes of the file; takes more here.
        sha256: Of the same bytes, 64 hexadecimal digits.
    """
    hasher.update(sha256.encode())
    return hasher.hexdigest()


class FileHash(contextlib.AbstractContextManager):
    """A hash of a file, from a thread of its own; takes one buffer, whatever the file's size.

    Args:
        path: The file.
        hasher: Takes all its bytes; by default SHA-256.
        keep: Whether it is read through the page cache, where others find it. Without, a file
            that was written past it is read past it too: this takes a tenth of the processor's time
            where the cache would need new pages, and pushes nothing out.
    """

    def __init__(self, path: Path, hasher: Hasher | None = None, *, keep: bool = False) -> None:
        self._path, self._keep = path, keep
        self._error: OSError | None = None
        self._stopped = False
        self._hash = hasher or hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="file-hash", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()

    def result(self) -> Hasher:
        """Return the hash, once all is read.

        Raises:
            UserError: If the file cannot be read.
        """
        self._thread.join()
        if self._error:
            raise UserError(f"cannot be read ({self._error.strerror})", str(self._path)) from None
        return self._hash

    def _run(self) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            if self._keep:
                fd, direct = os.open(self._path, flags), False
            else:
                fd, direct = open_direct(self._path, flags)
            try:
                self._read(fd, direct)
            finally:
                os.close(fd)
        except OSError as error:
            self._error = error

    def _read(self, fd: int, direct: bool) -> None:
        # its address is a page's
        buffer, place = memoryview(mmap.mmap(-1, _CHUNK)), 0
        _advise(fd, place, 0, "POSIX_FADV_SEQUENTIAL")
        while not self._stopped:
            try:
                count = read_into(fd, buffer, place)
            except OSError as error:
                if not (direct and is_refusal(error)):
                    raise
                go_buffered(fd)
                direct = False
                continue
            if not count:
                break
            self._hash.update(buffer[:count])
            if not (self._keep or direct):
                _advise(fd, place, count, "POSIX_FADV_DONTNEED")
            place += count


def sha256_streamed(path: Path) -> str:
    """Return the SHA-256 of a file that others will read too.

    Raises:
        UserError: If it cannot be read.
    """
    with FileHash(path, keep=True) as found:
        return found.result().hexdigest()


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
