"""What the operating system refuses, as one sentence that names the file and says what to do."""

from __future__ import annotations

import errno
import os

from shardmerge.base.errors import UserError

_ROOM = "Make room and run again."
_RIGHTS = "Give yourself the right to it, or choose another folder; then run again."
_PLACE = "Choose another folder, then run again."
#: By error number: what is the matter, and what to do.
_TOLD = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("files as large as this are not allowed here", _PLACE),
    errno.EROFS: ("the file system is read-only", "Make it writable, or choose another folder."),
    errno.EACCES: ("permission is denied", _RIGHTS),
    errno.EPERM: ("the operation is not permitted", _RIGHTS),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", _PLACE),
    errno.EISDIR: ("a folder has this name", "Move the folder away, then run again."),
    errno.ENAMETOOLONG: ("its name is too long for the file system", "Give it a shorter name."),
    errno.ENOENT: ("it is not there", "Was it moved or deleted meanwhile? Run again."),
    errno.EIO: ("the disk reports an input/output error", "Check the disk; then run again."),
    errno.ESTALE: ("the file server has lost it", "Run again."),
    errno.EMFILE: ("too many files are open", "Raise the limit (`ulimit -n`); then run again."),
    errno.ENFILE: ("too many files are open", "Close other programs, then run again."),
}


def disk_error(error: OSError, target: str | os.PathLike[str] | None = None) -> UserError:
    """Return a failure of the operating system as a user's error.

    Args:
        error: What it said.
        target: The file that was being written, or None for the file that the error names.
    """
    why, hint = _TOLD.get(error.errno, (error.strerror or type(error).__name__, "Run again."))
    if target is not None:
        return UserError(f"cannot be written: {why}", os.fspath(target), hint)
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    return UserError(f"cannot be used: {why}" if name else why, name, hint)


def is_told(error: OSError) -> bool:
    """Whether a failure is one of files and disks, and not a fault of the program."""
    return error.errno in _TOLD
