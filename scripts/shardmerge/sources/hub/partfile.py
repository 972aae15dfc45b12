"""The part file: what has come of a file so far, kept over kills, one writer at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from shardmerge.base import claims, diskerrors, files
from shardmerge.base.errors import UserError
from shardmerge.base.identities import LockedFile
from shardmerge.base.text import human_bytes
from shardmerge.sources.hub.content import CHUNK, has_content, new_hasher, wanted_digest


class PartFile:
    """A file beside its target, named by the hash that it shall have.

    The name makes a part of one content never grow with bytes of another. The claim on the
    target keeps a second process out until the first is done.

    Args:
        target: Where the finished file goes.
        locked: Size and hash.
        say: Receives what the user should know of.
    """

    def __init__(self, target: Path, locked: LockedFile, say: Callable[[str], None]) -> None:
        self.target, self.locked, self._say = target, locked, say
        self._wanted = wanted_digest(locked, str(target))
        self.path = target.with_name(f"{target.name}.{self._wanted[:16]}.part")
        self.size = 0
        self._hasher = new_hasher(locked)
        self._fd = -1
        self._claim = contextlib.ExitStack()

    def __enter__(self) -> PartFile:
        self._claim.enter_context(claims.claimed(self.target, self._say))
        try:
            with self._telling_disk():
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                self._resume()
        except BaseException:
            self._claim.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._claim:
            if os.fstat(self._fd).st_size == 0:
                self.discard()
            os.close(self._fd)

    @property
    def fd(self) -> int:
        """The descriptor, to clone into."""
        return self._fd

    def append(self, data: bytes) -> None:
        """Write bytes at the end.

        Raises:
            UserError: If the disk is full or cannot be written; what was written stays.
        """
        view = memoryview(data)
        with self._telling_disk():
            while view:
                count = os.pwrite(self._fd, view, self.size)
                self._hasher.update(view[:count])
                self.size += count
                view = view[count:]

    def restart(self) -> None:
        """Forget what has come."""
        with self._telling_disk():
            os.ftruncate(self._fd, 0)
            self._resume()

    def reread(self) -> None:
        """Take in what has been put into the file past ``append``."""
        self._resume()

    def is_right(self) -> bool:
        """Whether the file is whole and has the wanted hash."""
        return self.size == self.locked.size and self._hasher.hexdigest() == self._wanted

    def finish(self) -> bool:
        """Give the file its name, if it has the wanted content.

        Returns:
            Whether the target is there now.

        Raises:
            UserError: If another file has that name.
        """
        if not self.is_right():
            return False
        if self.is_done():
            self.discard()
            return True
        with self._telling_disk():
            files.put_in_place(self.path, self.target)
        return True

    def discard(self) -> None:
        """Remove the part file: the target came by another way."""
        if self._is_current():
            self.path.unlink(missing_ok=True)

    def is_done(self) -> bool:
        """Whether the target is there already, with the locked content.

        Raises:
            UserError: If something else has its name.
        """
        if not self.target.exists() and not self.target.is_symlink():
            return False
        if has_content(self.target, self.locked):
            return True
        raise UserError(
            "exists, but its content is not the one that the lock names",
            str(self.target),
            "It is left as it is. Move it away to have the file fetched.",
        )

    def _is_current(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            ours, named = os.fstat(self._fd), os.stat(self.path, follow_symlinks=False)
            return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
        return False

    def _resume(self) -> None:
        self._hasher, self.size = new_hasher(self.locked), 0
        if os.fstat(self._fd).st_size > self.locked.size:
            os.ftruncate(self._fd, 0)
        while block := os.pread(self._fd, CHUNK, self.size):
            self._hasher.update(block)
            self.size += len(block)

    @contextlib.contextmanager
    def _telling_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not diskerrors.is_told(error):
                raise
            told = diskerrors.disk_error(error, self.target)
            kept = f"{human_bytes(self.size)} of {human_bytes(self.locked.size)}"
            hint = f"{told.hint} {kept} are kept in {self.path.name}, to go on from there."
            raise UserError(told.message, told.where, hint) from None
