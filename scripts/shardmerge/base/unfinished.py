"""A job's work so far, kept beside its output over kills, and taken over by the same job alone.

Two files: what is written of the result already (``NAME.part``), and what it takes to go on
(``NAME.state.part``), which names that job, says how much of the result counts, and ends with a
hash of itself. The second is replaced as a whole, so that both tell of one moment at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from shardmerge.base import claims
from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path, put_in_place
from shardmerge.base.jsontext import parse_json

#: Changes when files of before can no longer be read.
_FORM = 1
_HASH_BYTES, _LENGTH_BYTES, _PIECE = 32, 8, 8 << 20
#: Bytes of what is done, as JSON.
_MOST = 64 << 20
#: Bytes a second that a disk is expected to take, before that is known.
_SPEED = 100_000_000

Data = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Keeping:
    """How often a job keeps what it has done, and what may take it over.

    Args:
        job: All that decides the bits of what is kept, JSON-able.
        least: Seconds between two times, at least.
        share: Of the job's time that keeping may take.
        say: Receives a line for the log.
        clock: Gives seconds.
    """

    job: Any = None
    least: float = 30.0
    share: float = 0.02
    say: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.monotonic

    def also(self, **facts: Any) -> Keeping:
        """Return the same for a job that more facts decide."""
        return replace(self, job=[self.job, facts])


class Unfinished:
    """The result of a job, which is written front to back, and all that it takes to go on.

    A context: the work is done within, and at the end the result gets its name. After a kill or an
    error what was kept last stays, unless it is of files that have changed meanwhile.

    Args:
        output: The result.
        keeping: How often work is kept, and what may take it over.
        confirm: Called before anything is kept or named: nothing that is read has changed.
    """

    def __init__(
        self, output: Path, keeping: Keeping, confirm: Callable[[], None] = lambda: None
    ) -> None:
        self.done: Mapping[str, Any] = {}
        self.arrays: list[bytearray] = []
        self._output, self._keeping, self._confirm = output, keeping, confirm
        self._result = output.with_name(f"{output.name}.part")
        self._state = output.with_name(f"{output.name}.state.part")
        self._job = digest([_FORM, keeping.job])
        self._began = keeping.clock()
        self._next: float | None = None
        self._hash, self._size = hashlib.sha256(), 0

    def __enter__(self) -> Unfinished:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._file: BufferedRandom = open(self._result, "r+b", opener=_open_or_make)
        if self._take_over():
            self._keeping.say("goes on where an earlier run was stopped")
        else:
            self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._file:
                if error is None:
                    self._finish()
        finally:
            if not self._state.exists():
                self._discard()

    def restart(self) -> None:
        """Forget all that is done, here and in earlier runs."""
        self._state.unlink(missing_ok=True)
        self._file.seek(0)
        self._file.truncate()
        self._hash, self._size = hashlib.sha256(), 0
        self.done, self.arrays = {}, []

    def write(self, data: Data) -> None:
        """Write what follows in the result.

        Raises:
            UserError: If another process has taken the output over.
        """
        claims.confirm(self._output)
        self._file.write(data)
        self._hash.update(data)
        self._size += memoryview(data).nbytes

    def keep(self, done: Mapping[str, Any], arrays: Iterable[Data] = (), size: int = 0) -> bool:
        """Keep all that is written, and this, if it is time to.

        Args:
            done: What is done, JSON-able.
            arrays: What is not written yet.
            size: Bytes of it.

        Returns:
            Whether it was kept.

        Raises:
            UserError: If what is read has changed, or another process has taken the output over.
        """
        now, keeping = self._keeping.clock(), self._keeping
        rest = 1 / keeping.share - 1  # seconds of work for one of keeping
        if self._next is None:
            self._next = self._began + max(keeping.least, rest * size / _SPEED)
        if now < self._next:
            return False
        self._confirm_read()
        claims.confirm(self._output)
        kept = self._has_kept(done, arrays, size)
        self._next = keeping.clock() + max(keeping.least, rest * (keeping.clock() - now))
        return kept

    def _has_kept(self, done: Mapping[str, Any], arrays: Iterable[Data], size: int) -> bool:
        try:
            if shutil.disk_usage(self._output.parent).free < 2 * size:
                return False
            self._file.flush()
            os.fsync(self._file.fileno())
            facts = {"job": self._job, "done": done, "size": self._size}
            head = canonical_json({**facts, "sha256": self._hash.hexdigest()}).encode() + b"\n"
            with atomic_path(self._state) as part, open(part, "xb") as file:
                whole = hashlib.sha256()
                for data in _framed(head, arrays):
                    whole.update(data)
                    file.write(data)
                file.write(whole.digest())
        except (UserError, OSError) as error:  # a full disk; it need not be full at the end
            self._keeping.say(f"what is done so far cannot be kept: {error}")
            return False
        return True

    def _take_over(self) -> bool:
        """Take over what an earlier run of this job has kept; return whether there was any."""
        try:
            with open(self._state, "rb", opener=_open_alone) as file:
                head, arrays = _read_state(file)
        except (OSError, ValueError, UserError):
            return False
        if not isinstance(head, dict) or head.get("job") != self._job:
            return False
        done, size = head.get("done"), head.get("size")
        if not isinstance(done, dict) or type(size) is not int or not self._has_whole(size):
            return False
        self.done, self.arrays = done, arrays
        return self._hash.hexdigest() == head.get("sha256")

    def _has_whole(self, size: int) -> bool:
        """Read so many bytes of the result, cut off what follows; return whether they are there."""
        while self._size < size:
            data = self._file.read(min(_PIECE, size - self._size))
            if not data:
                return False
            self._hash.update(data)
            self._size += len(data)
        self._file.seek(self._size)
        self._file.truncate()
        return self._size == size

    def _confirm_read(self) -> None:
        try:
            self._confirm()
        except UserError:
            self.restart()
            raise

    def _finish(self) -> None:
        self._confirm_read()
        self._file.flush()
        put_in_place(self._result, self._output)
        self._state.unlink(missing_ok=True)

    def _discard(self) -> None:
        with contextlib.suppress(UserError, OSError):
            claims.confirm(self._output)  # else they are another process's
            self._state.unlink(missing_ok=True)
            self._result.unlink(missing_ok=True)


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _open_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _framed(head: bytes, arrays: Iterable[Data]) -> Iterator[Data]:
    """Return what a state's file has but for its hash."""
    yield head
    for data in arrays:
        yield memoryview(data).nbytes.to_bytes(_LENGTH_BYTES, "little")
        yield data


def _read_state(file: BinaryIO) -> tuple[Any, list[bytearray]]:
    """Return what ``_framed`` has written.

    Raises:
        ValueError, UserError: If the file is not whole.
    """
    whole, left = hashlib.sha256(), os.fstat(file.fileno()).st_size - _HASH_BYTES
    head, arrays = file.readline(min(max(left, 0), _MOST)), []
    whole.update(head)
    left -= len(head)
    while left > 0:
        length = file.read(_LENGTH_BYTES)
        count = int.from_bytes(length, "little")
        left -= _LENGTH_BYTES + count
        if left < 0:
            break
        data = bytearray(count)
        file.readinto(data)
        whole.update(length)
        whole.update(data)
        arrays.append(data)
    if left or file.read(_HASH_BYTES) != whole.digest():
        raise ValueError("is not whole")
    return parse_json(head, file.name), arrays
