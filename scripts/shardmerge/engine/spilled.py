"""Bits of a large tensor's elements, in a file without a name instead of in memory.

The kernel keeps as much of the file as it has room for. Where none can be made, bits lie in memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from shardmerge.base.files import fill_from
from shardmerge.engine.memory import MASKED

_ZEROS = bytes(1 << 20)


class FileBytes:
    """The bytes of a file, of which parts are read as those of an array are taken.

    Args:
        file: Open, without a name.
        folder: Where it lies.
    """

    def __init__(self, file: IO[bytes], folder: Path) -> None:
        self._file, self._folder = file, folder

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return bytes that follow each other, uint8.

        Raises:
            UserError: If they cannot be read.
        """
        found = np.empty(part.stop - part.start, np.uint8)
        fill_from(self._file.fileno(), self._folder, part.start, memoryview(found))
        return found


class Bits:
    """Zeros that are set bit by bit.

    Args:
        count: Elements that they are of.
        size: Bytes.
        beside: A folder on a disk; without one they lie in memory.

    Attributes:
        bytes: They, uint8 [size], while they are set.
    """

    def __init__(self, count: int, size: int, beside: Path | None) -> None:
        self._made: tuple[IO[bytes], Path] | None = None
        if count > MASKED and beside:
            # no room, or a file system that maps no files
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                file = stack.enter_context(tempfile.TemporaryFile(dir=beside))
                for first in range(0, size, len(_ZEROS)):  # so that there is room for all
                    file.write(_ZEROS[: size - first])
                file.flush()
                self._map = np.memmap(file, np.uint8, "r+", shape=(size,))
                self.bytes = np.asarray(self._map)
                self._made = file, beside
                stack.pop_all()
        if not self._made:
            self.bytes = np.zeros(size, np.uint8)

    def finished(self) -> np.ndarray | FileBytes:
        """Return what all are read from, once all are set.

        Raises:
            OSError: If the disk cannot keep them.
        """
        if not self._made:
            return self.bytes
        self._map.flush()
        del self._map, self.bytes
        return FileBytes(*self._made)
