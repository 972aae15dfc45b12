"""Takes from every Python that starts with this folder on its path what other systems lack.

MASKED names what, separated by commas: keys of ``MASKS``.
"""

from __future__ import annotations

import _signal
import _socket
import builtins
import ctypes
import errno
import fcntl
import io
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any


def _without(module: Any, *names: str) -> Callable[[], None]:
    def mask() -> None:
        for one in (module, _MADE_OF.get(module)):
            for name in names:
                if hasattr(one, name):
                    delattr(one, name)

    return mask


#: What Python's modules have their names from.
_MADE_OF = {signal: _signal, socket: _socket}


def _is_ours() -> bool:
    """Return whether the library asks, and not another package, which may know its own way."""
    frames = (sys._getframe(depth) for depth in range(2, 7) if depth < _depth())
    return any(frame.f_globals.get("__name__", "").startswith("shardmerge") for frame in frames)


def _depth() -> int:
    frame, count = sys._getframe(), 0
    while frame := frame.f_back:
        count += 1
    return count


def _no_proc() -> None:
    def hidden(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            named = not isinstance(path, int) and os.fsdecode(path).startswith("/proc/")
            if named and _is_ours():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return function(path, *args, **options)

        return call

    builtins.open = io.open = hidden(open)
    os.readlink = hidden(os.readlink)


def _no_clone() -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    fcntl.ioctl = refuse


def _no_function_of_c(missing: str) -> Callable[[], None]:
    def mask() -> None:
        look = ctypes.CDLL.__getattr__

        def other(library: ctypes.CDLL, name: str) -> Any:
            if name == missing:
                raise AttributeError(name)
            return look(library, name)

        ctypes.CDLL.__getattr__ = other

    return mask


class _Merging:
    """Finds no package that is not among those that merging needs."""

    MISSING = ("torch", "transformers", "lm_eval", "datasets", "tokenizers", "safetensors")

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in self.MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _merging_alone() -> None:
    sys.meta_path.insert(0, _Merging())


MASKS = {
    "pidfd": _without(os, "pidfd_open"),
    "pidfd-signal": _without(signal, "pidfd_send_signal"),
    "peer": _without(socket, "SO_PEERCRED"),
    "packets": _without(socket, "SOCK_SEQPACKET"),
    "direct": _without(os, "O_DIRECT"),
    "proc": _no_proc,
    "clone": _no_clone,
    "fallocate": _no_function_of_c("fallocate"),
    "mallopt": _no_function_of_c("mallopt"),
    "advice": _without(os, "posix_fadvise", *(n for n in dir(os) if n.startswith("POSIX_FADV"))),
    "preadv": _without(os, "preadv", "readv", "preadv2"),
    "nowait": _without(os, "RWF_NOWAIT"),
    "affinity": _without(os, "sched_getaffinity"),
    "boottime": _without(time, "CLOCK_BOOTTIME"),
    "hugepages": _without(mmap, "MADV_HUGEPAGE"),
    "torch": _merging_alone,
}

for chosen in filter(None, os.environ.get("MASKED", "").split(",")):
    MASKS[chosen]()
