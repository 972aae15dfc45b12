"""Room of a job in which the sources of tensors are held, one tensor after the other."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from shardmerge.base.direct import huge_pages
from shardmerge.engine.held import HeldSources
from shardmerge.engine.pipeline import Stopped


class HeldRoom:
    """Memory for the largest tensor of some, made once, and what lies in it.

    Tensors take it in their order, so that a thread waits only for threads with earlier windows.

    Args:
        sizes: Of each tensor that is held the bytes of its sources, by its index.
        parts: Of each tensor in how many windows it lies.
        make: Makes a tensor's sources of its index, memory and that one's address.
    """

    def __init__(
        self,
        sizes: Mapping[int, int],
        parts: Counter[int],
        make: Callable[[int, memoryview, int], HeldSources],
    ) -> None:
        self._make = make
        self._sizes, self._left = sizes, {one: parts[one] for one in sizes}
        self._turns = sorted(sizes, reverse=True)
        self._length = max(sizes.values())
        pages = huge_pages(self._length)
        self._memory = memoryview(pages)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        self._changed = threading.Condition()
        self._taken: dict[int, tuple[int, HeldSources]] = {}
        self._stopped = False

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._sizes

    def take(self, tensor: int) -> HeldSources:
        """Return the sources of a tensor; who asks first waits until there is room for them.

        Raises:
            Stopped: If another thread of the job failed.
        """
        with self._changed:
            while tensor not in self._taken:
                if self._stopped:
                    raise Stopped
                size = self._sizes[tensor]
                begin = self._free(size) if self._turns[-1] == tensor else None
                if begin is None:
                    self._changed.wait()
                    continue
                own = self._memory[begin : begin + size], self._address + begin
                self._taken[tensor] = begin, self._make(tensor, *own)
                self._turns.pop()
                self._changed.notify_all()
            return self._taken[tensor][1]

    def release(self, tensor: int) -> None:
        """Say that a window's part of a tensor is done; the last one frees its room."""
        with self._changed:
            self._left[tensor] -= 1
            if not self._left[tensor]:
                del self._taken[tensor]
                self._changed.notify_all()

    def stop(self) -> None:
        """Let every waiting thread go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _free(self, size: int) -> int | None:
        """Return where so many bytes are free, or None."""
        taken = [(begin, begin + self._sizes[one]) for one, (begin, _) in self._taken.items()]
        for begin in [0, *(end for _, end in taken)]:
            end = begin + size
            if end <= self._length and all(end <= low or high <= begin for low, high in taken):
                return begin
        return None
