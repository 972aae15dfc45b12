"""Hashes of bytes that are read or written anyway, and of whole files beside something else."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from shardmerge.base.direct import go_buffered, huge_buffer, is_refusal, open_direct
from shardmerge.base.errors import UserError
from shardmerge.base.files import cut_short, read_into

#: Bytes that are read at once: from the page cache what stays in a core's own cache until it is
#: hashed; past it what takes the kernel least.
_CHUNK, _DIRECT_CHUNK = 1 << 20, 1 << 22
#: Reads past the page cache at once, while a piece is hashed: a disk is never idle, and buffers are
#: few enough to stay in a processor's caches.
_AT_ONCE = 2


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


class Excerpts:
    """Ranges of a file's bytes, copied as all of them pass by.

    Args:
        ranges: (offset, bytes) each, ascending; none reaches into the next.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._begins = [begin for begin, _ in ranges]
        self._ends = [begin + length for begin, length in ranges]
        self._places = [0, *itertools.accumulate(length for _, length in ranges)]
        self._made = bytearray(self._places[-1])

    def add(self, data: memoryview, place: int) -> None:
        """Take the bytes that follow each other from a place of the file on."""
        number = bisect.bisect_right(self._ends, place)
        end = place + len(data)
        while number < len(self._begins) and self._begins[number] < end:
            begin, own = max(self._begins[number], place), self._places[number]
            part = data[begin - place : self._ends[number] - place]
            own += begin - self._begins[number]
            self._made[own : own + len(part)] = part
            number += 1

    def part(self, ranges: Sequence[tuple[int, int]]) -> memoryview:
        """Return the bytes of ranges that follow each other among those that are copied."""
        first = bisect.bisect_left(self._begins, ranges[0][0])
        own = slice(self._places[first], self._places[first + len(ranges)])
        return memoryview(self._made)[own]


class FileHash(contextlib.AbstractContextManager):
    """A hash of a file, from a thread of its own; takes a few buffers, whatever the file's size.

    Args:
        path: The file.
        hasher: Takes all its bytes; by default SHA-256.
        keep: Whether it is read through the page cache, where others find it. Without, a file
            that was written past it is read past it too: this takes a tenth of the processor's time
            where the cache would need new pages, and pushes nothing out.
        excerpts: Ranges of its bytes that are kept.
    """

    def __init__(
        self,
        path: Path,
        hasher: Hasher | None = None,
        *,
        keep: bool = False,
        excerpts: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._path, self._keep = path, keep
        self._error: BaseException | None = None
        self._stopped = False
        self._excerpts = Excerpts(excerpts)
        self._passed, self._ended, self._moved = 0, False, threading.Condition()
        self._awaited: int | None = None
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
        if self._error and not isinstance(self._error, OSError):
            raise self._error
        if self._error:
            raise UserError(f"cannot be read ({self._error.strerror})", str(self._path)) from None
        return self._hash

    def excerpt(self, ranges: Sequence[tuple[int, int]]) -> memoryview:
        """Return the bytes of excerpts that follow each other, once they are read.

        Raises:
            UserError: If the file cannot be read, or ends too early.
        """
        end = sum(ranges[-1])
        with self._moved:
            self._awaited = end
            self._moved.wait_for(lambda: self._passed >= end or self._ended)
            self._awaited = None
        if self._passed < end:
            self.result()
            raise cut_short(self._path, end)
        return self._excerpts.part(ranges)

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
        except BaseException as error:
            self._error = error
        finally:
            with self._moved:
                self._ended = True
                self._moved.notify_all()

    def _read(self, fd: int, direct: bool) -> None:
        place = self._read_ahead(fd) if direct else 0
        buffer = huge_buffer(_CHUNK)
        _advise(fd, place, 0, "POSIX_FADV_SEQUENTIAL")
        while not self._stopped and (count := read_into(fd, buffer, place)):
            self._take(buffer[:count], place)
            if not self._keep:
                _advise(fd, place, count, "POSIX_FADV_DONTNEED")
            place += count

    def _read_ahead(self, fd: int) -> int:
        """Read past the page cache, several pieces at once, as far as the file system does.

        Each of a few threads reads every so manieth piece, and hashes it when its turn comes.

        Returns:
            The place from which on the file is to be read through the page cache.
        """
        turns = [threading.Semaphore(0) for _ in range(_AT_ONCE + 1)]  # one hashes meanwhile
        buffers = [huge_buffer(_DIRECT_CHUNK) for _ in turns]
        done, over = 0, False
        failed: BaseException | None = None

        def read(number: int) -> None:
            nonlocal done, over, failed
            buffer, place = buffers[number], number * _DIRECT_CHUNK
            while not over:
                count, error = 0, None
                try:
                    count = read_into(fd, buffer, place)
                except BaseException as raised:
                    error = raised
                turns[number].acquire()
                try:
                    if not over and not error:
                        self._take(buffer[:count], place)
                        done += count
                        over = self._stopped or count < _DIRECT_CHUNK
                except BaseException as raised:
                    error = raised
                if error and not over:
                    failed, over = error, True
                turns[(number + 1) % len(turns)].release()
                place += len(turns) * _DIRECT_CHUNK

        others = [
            threading.Thread(target=read, args=(i,), daemon=True) for i in range(1, len(turns))
        ]
        for thread in others:
            thread.start()
        turns[0].release()
        read(0)
        for thread in others:
            thread.join()
        if failed and not (isinstance(failed, OSError) and is_refusal(failed)):
            raise failed
        go_buffered(fd)
        return done

    def _take(self, data: memoryview, place: int) -> None:
        self._hash.update(data)
        self._excerpts.add(data, place)
        with self._moved:
            self._passed = place + len(data)
            if self._awaited is not None and self._passed >= self._awaited:
                self._moved.notify_all()


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
