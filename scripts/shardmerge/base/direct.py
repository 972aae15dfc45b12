"""Files that are read and written past the page cache, where their file system takes that."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from pathlib import Path

#: Offset, length and address of what is read or written directly are multiples of this.
PAGE = 4096
_HUGE_PAGE = 1 << 21
_DIRECT = getattr(os, "O_DIRECT", 0)
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def open_direct(path: Path, flags: int, mode: int = 0o666) -> tuple[int, bool]:
    """Open a file past the page cache; return its descriptor, and whether it is.

    Args:
        path: The file.
        flags, mode: As ``os.open`` takes them.

    Raises:
        OSError: If it cannot be opened at all.
    """
    try:
        return os.open(path, flags | _DIRECT, mode), bool(_DIRECT)
    except OSError as error:
        if not _DIRECT or error.errno not in _REFUSED:
            raise
        return os.open(path, flags, mode), False


def is_refusal(error: OSError) -> bool:
    """Whether an error may be that a file system reads or writes nothing directly."""
    return error.errno in _REFUSED


def go_buffered(fd: int) -> None:
    """Read and write an open file through the page cache from now on."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~_DIRECT)


def huge_pages(length: int) -> mmap.mmap:
    """Return private memory of so many bytes, in huge pages where there are such."""
    pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def huge_buffer(length: int) -> memoryview:
    """Return memory that begins with a huge page, where there are such.

    To read 4 MiB past the page cache into it takes the kernel a fifth of what small pages take.

    Args:
        length: Bytes, a multiple of PAGE.
    """
    pages = huge_pages(length + _HUGE_PAGE)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % _HUGE_PAGE
    return memoryview(pages)[first : first + length]
