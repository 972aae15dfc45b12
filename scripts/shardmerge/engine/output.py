"""Writing the output past the page cache, and making it from a source file as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from pathlib import Path

from shardmerge.base import diskerrors
from shardmerge.base.claims import confirm, part_path
from shardmerge.base.direct import PAGE, go_buffered, is_refusal, open_direct
from shardmerge.base.errors import UserError

_FICLONE = 0x40049409


class OutputFile(contextlib.AbstractContextManager):
    """A file that is written in windows, with O_DIRECT where the file system takes it.

    Args:
        path: File to make.
        size: Its bytes when done.

    Raises:
        UserError: If it exists, or cannot be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd, self.direct = open_direct(path, flags, 0o600)
        except OSError as error:
            raise self._error(error) from None
        try:
            self._allocate()
        except BaseException:
            os.close(self._fd)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, buffer: memoryview, length: int, offset: int) -> None:
        """Write the first bytes of a page-aligned buffer that has room up to a whole page.

        Raises:
            UserError: If the disk is full or the file cannot be written.
        """
        end = length
        if self.direct:
            end = -(-length // PAGE) * PAGE
            buffer[length:end] = bytes(end - length)
        done = 0
        while done < end:
            try:
                done += os.pwrite(self._fd, buffer[done:end], offset + done)
            except OSError as error:
                if not (self.direct and is_refusal(error)):
                    raise self._error(error) from None
                go_buffered(self._fd)
                self.direct, end = False, length

    def finish(self) -> None:
        """Cut the last page's padding."""
        os.ftruncate(self._fd, self._size)

    def _allocate(self) -> None:
        """Reserve the space: a full disk is told at once, and direct writes need not extend.

        The system call itself, since the C library's posix_fallocate writes zeros where a file
        system cannot.
        """
        library = ctypes.CDLL(None, use_errno=True)
        if not self._size or not hasattr(library, "fallocate"):
            return
        size = ctypes.c_longlong(self._size)
        if library.fallocate(self._fd, 0, ctypes.c_longlong(0), size) != 0:
            code = ctypes.get_errno()
            if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._error(OSError(code, os.strerror(code)))

    def _error(self, error: OSError) -> UserError:
        hint = diskerrors.disk_error(error).hint
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"This shard needs {self._size / 1e9:.2f} GB; free some space and run again."
        return UserError(f"cannot be written ({error.strerror})", str(self._path), hint)


def clone(source: Path, target: Path) -> bool:
    """Make a new file share a source's blocks (FICLONE); return whether the file system can."""
    with contextlib.suppress(OSError), open(source, "rb") as reader, open(target, "xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return True
        except OSError:
            target.unlink()
    return False


def hard_link(source: Path, target: Path) -> bool:
    """Give a source file a second name in one step; return whether the file system can.

    The source's mode stays as it is, since it is the same file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(target)
    try:
        os.link(source.resolve(), part)
    except OSError:
        return False
    try:
        confirm(target)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)  # rename does nothing where both are one file already
    return True
