"""Checksums of parts of a file, from bytes that are read or written anyway."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Mapping

from shardmerge.base.hashing import Hasher, quick_hasher

_CHUNK = 4 << 20


class Witness:
    """Hashes parts of a file as their bytes pass.

    Bytes may come in any order and more than once. What comes ahead of its turn does not count, so
    ``finish`` reads it again; a job that goes through a file in order reads nothing twice.

    Args:
        parts: Half-open range of each part, in bytes; they do not overlap.
        new: Returns an empty hash.
    """

    def __init__(
        self, parts: Mapping[str, tuple[int, int]], new: Callable[[], Hasher] = quick_hasher
    ) -> None:
        rows = sorted((begin, end, name) for name, (begin, end) in parts.items())
        self._names = [name for _, _, name in rows]
        self._ends = [end for _, end, _ in rows]
        self._places = [begin for begin, _, _ in rows]
        self._hashes = [new() for _ in rows]
        self._lock = threading.Lock()

    def saw(self, offset: int, data: memoryview) -> None:
        """Take bytes of the file from an offset on."""
        last = offset + len(data)
        with self._lock:
            for i in range(bisect.bisect_right(self._ends, offset), len(self._ends)):
                place, end = self._places[i], min(self._ends[i], last)
                if place >= last:
                    break
                if offset <= place < end:
                    self._hashes[i].update(data[place - offset : end - offset])
                    self._places[i] = end

    def finish(self, read: Callable[[int, memoryview], None]) -> dict[str, str]:
        """Return each part's hash, once what did not come in order is read.

        Args:
            read: Fills a buffer with the file's bytes from an offset on.
        """
        buffer = memoryview(bytearray(min(_CHUNK, self.left)))
        for i, end in enumerate(self._ends):
            while (place := self._places[i]) < end:
                part = buffer[: min(_CHUNK, end - place)]
                read(place, part)
                self._hashes[i].update(part)
                self._places[i] = place + len(part)
        return {name: one.hexdigest() for name, one in zip(self._names, self._hashes, strict=True)}

    @property
    def left(self) -> int:
        """Bytes that have not come in order yet."""
        return sum(end - place for place, end in zip(self._places, self._ends, strict=True))
