"""The C library's memory: what a process has freed is kept for what it needs next."""

from __future__ import annotations

import contextlib
import ctypes

#: glibc's names of what ``mallopt`` sets, https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Bytes that are kept at most, and from which on an array has pages of its own.
_KEPT, _LARGE = 1 << 26, 1 << 23


def keep_freed_memory() -> None:
    """Have the arrays of small steps take no new pages each time, where the C library is glibc.

    Elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGE)
