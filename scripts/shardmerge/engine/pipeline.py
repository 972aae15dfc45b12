"""Windows on their way: read ahead, compute in threads, write behind, hash in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shardmerge.engine.layout import Window


class Slot(Protocol):
    """Buffers that a window travels in; they are used again and again."""

    window: Window


class Stopped(Exception):
    """Another thread of the pipeline failed."""


class Pipeline:
    """Slots circulate between a reader, compute threads, a writer and the caller's thread.

    Windows are read in order, computed and written in any order, and finished (hashed) in order.

    Args:
        slots: At least four more than there are compute threads, so that every stage has one.
        read: Fills a slot with its window's bytes.
        compute: One function for each compute thread.
        write: Writes a slot's window, or None where nothing is written.
        finish: Called in the caller's thread, in order.
        beside: What further threads do, which ends by itself or when ``stop`` is called.
        stop: Called when a thread failed, to wake threads that wait outside the pipeline.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        read: Callable[[Any], None],
        compute: Sequence[Callable[[Any], None]],
        write: Callable[[Any], None] | None,
        finish: Callable[[Any], None],
        beside: Sequence[Callable[[], None]] = (),
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._compute, self._write, self._finish = read, compute, write, finish
        self._beside, self._stop_outside = beside, stop
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._computed: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._pending: dict[int, int] = {}
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        for slot in slots:
            self._free.put(slot)

    def run(self, windows: Sequence[Window]) -> None:
        """Send the windows through; return when all are written and finished.

        Raises:
            Exception: The first that any thread raised.
        """
        threads = [self._thread("read", self._read_all, windows)]
        threads += [self._thread("compute", self._compute_all, one) for one in self._compute]
        threads += [self._thread("ahead", one) for one in self._beside]
        if self._write:
            threads.append(self._thread("write", self._write_all))
        for thread in threads:
            thread.start()
        try:
            self._finish_all(len(windows))
            self._written.put(None)
        except BaseException as error:
            self._fail(error)
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _thread(self, name: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                self._fail(error)

        return threading.Thread(target=guarded, name=f"shard-{name}", daemon=True)

    def _fail(self, error: BaseException) -> None:
        """Keep the error and let every thread find a None where it waits."""
        if not isinstance(error, Stopped):
            self._errors.append(error)
        self._stop_outside()
        for waiting in (self._free, self._written, self._computed):
            waiting.put(None)
        for _ in self._compute:
            self._ready.put(None)

    def _read_all(self, windows: Sequence[Window]) -> None:
        for window in windows:
            slot = self._free.get()
            if slot is None:
                return
            slot.window = window
            self._read(slot)
            self._ready.put(slot)
        for _ in self._compute:
            self._ready.put(None)

    def _compute_all(self, compute: Callable[[Any], None]) -> None:
        while (slot := self._ready.get()) is not None:
            compute(slot)
            if self._write:
                with self._lock:
                    self._pending[slot.window.index] = 2
                self._written.put(slot)
            self._computed.put(slot)

    def _write_all(self) -> None:
        while (slot := self._written.get()) is not None:
            self._write(slot)
            self._release(slot)

    def _finish_all(self, count: int) -> None:
        waiting: dict[int, Slot] = {}
        for index in range(count):
            while index not in waiting:
                slot = self._computed.get()
                if slot is None:
                    raise Stopped
                waiting[slot.window.index] = slot
            slot = waiting.pop(index)
            self._finish(slot)
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        """Free a slot once both the writer and the caller's thread are done with it."""
        with self._lock:
            left = self._pending.pop(slot.window.index, 1) - 1
            if left:
                self._pending[slot.window.index] = left
        if not left:
            self._free.put(slot)
