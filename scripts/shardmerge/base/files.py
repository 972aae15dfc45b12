"""Outputs appear whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shardmerge.base import claims, diskerrors
from shardmerge.base.claims import part_path, remove_parts
from shardmerge.base.errors import UserError, misspelt
from shardmerge.base.jsontext import MAX_BYTES, parse_json

#: Seconds after which the unfinished file of a text that nobody claims has no writer any more.
_STALE = 3600
_PIECE = 8 << 20  # bytes that are copied at once


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside the target to write to; on success fsync it and rename it over the target.

    On an error what was written is removed and the target stays as it was.

    Raises:
        UserError: If the target cannot be written, with what to do.
    """
    target = Path(target)
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        put_in_place(part, target)
    except OSError as error:
        if _is_of_another(error, target, part):
            raise
        raise diskerrors.disk_error(error, target) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _is_of_another(error: OSError, target: Path, part: Path) -> bool:
    """Whether an error while a target was written is no fault of the target's place."""
    if error.filename is None:
        return not diskerrors.is_told(error)
    named = Path(os.fsdecode(error.filename))
    return named not in (part, target) and named not in target.parents


def put_in_place(part: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Move a finished file to its name: mode 0666 less the umask, fsync, rename.

    Raises:
        UserError: If this process held the target's claim and lost it.
    """
    umask = os.umask(0)
    os.umask(umask)
    with open(part, "rb") as file:
        os.fchmod(file.fileno(), 0o666 & ~umask)
        os.fsync(file.fileno())
    claims.confirm(target)
    os.replace(part, target)
    folder = os.open(Path(target).parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it
            os.fsync(folder)
    finally:
        os.close(folder)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all; unfinished ones of killed writers go."""
    remove_parts(target, older_than=_STALE)
    with atomic_path(target) as part, open(part, "x", encoding="utf-8") as file:
        file.write(text)


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write readable JSON (indented, keys sorted, a final newline) whole or not at all."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike[str], *, exact: bool = False) -> str:
    """Return a UTF-8 text.

    Args:
        path: The file.
        exact: Whether line ends stay as they are; else each is a line feed.

    Raises:
        UserError: If it cannot be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8", newline="" if exact else None) as file:
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), near_path(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", str(path), "Save it as UTF-8.") from None


def near_path(path: str | os.PathLike[str]) -> str | None:
    """Return a sentence that suggests the name beside a path that is not there, or None."""
    path = Path(path)
    for missing in (path, *path.parents):
        if missing.parent.is_dir() and not missing.exists():
            with contextlib.suppress(OSError):
                known = {entry.name for entry in missing.parent.iterdir()}
                near = misspelt(missing.name, known, least=0.6) or ""
                meant = missing.parent / near / path.relative_to(missing)
                if near and meant.exists():
                    return f"Did you mean {str(meant)!r}?"
            break
    return None


def read_bytes(path: str | os.PathLike[str], most: int = MAX_BYTES) -> bytes:
    """Return a small file's bytes.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        UserError: If it cannot be read or has more.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be read ({reason})", str(path)) from None
    if len(data) > most:
        raise UserError(f"has more than {most} bytes, more than any real one", str(path))
    return data


def will_need(fd: int, offset: int, length: int) -> None:
    """Tell the kernel, where it takes such advice, that a range of a file will be read soon."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)


def read_into(fd: int, into: memoryview, offset: int) -> int:
    """Fill the beginning of a buffer with a file's bytes from an offset on.

    Args:
        fd: The file.
        into: The buffer.
        offset: In the file.

    Returns:
        How many bytes came, as of ``os.preadv``, which not every system has.
    """
    if hasattr(os, "preadv"):
        return os.preadv(fd, [into], offset)
    data = os.pread(fd, min(len(into), _PIECE), offset)
    into[: len(data)] = data
    return len(data)


def fill_from(fd: int, path: str | os.PathLike[str], offset: int, into: memoryview) -> None:
    """Fill a buffer with a file's bytes from an offset on.

    Args:
        fd: The file, open.
        path: Of it, for errors.
        offset: In the file.
        into: The buffer, filled whole.

    Raises:
        UserError: If the file cannot be read, or ends too early.
    """
    end = offset + len(into)
    while len(into):
        try:
            count = read_into(fd, into, offset)
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
        if not count:
            raise cut_short(path, end)
        offset, into = offset + count, into[count:]


def cut_short(path: str | os.PathLike[str], end: int) -> UserError:
    """Return the error of a file that ends before a byte that it had."""
    return UserError(f"ends before byte {end}: it was cut while it was read", str(path))


def fill_ranges(
    fd: int, path: str | os.PathLike[str], ranges: Sequence[tuple[int, int]], into: memoryview
) -> None:
    """Fill a buffer with ranges of a file, one after the other.

    Args:
        fd: The file, open.
        path: Of it, for errors.
        ranges: (offset, bytes) each.
        into: The buffer, of bytes, filled whole.

    Raises:
        UserError: If the file cannot be read, or ends too early.
    """
    number, place = _fill_known(fd, ranges, into)
    for offset, length in ranges[number:]:  # a disk brings many at once faster than one by one
        will_need(fd, offset, length)
    for offset, length in ranges[number:]:
        fill_from(fd, path, offset, into[place : place + length])
        place += length


def _fill_known(fd: int, ranges: Sequence[tuple[int, int]], into: memoryview) -> tuple[int, int]:
    """Read ranges as long as they are in memory; return how many are, and how many bytes."""
    place = 0
    if not (hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")):
        return 0, 0
    try:
        for number, (offset, length) in enumerate(ranges):
            part = into[place : place + length]
            if os.preadv(fd, (part,), offset, os.RWF_NOWAIT) < length:
                return number, place
            place += length
    except OSError:  # not there, or a file system that does not tell
        return number, place
    return len(ranges), place


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None


def load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: If it cannot be read or is not an object.
    """
    return parse_object(read_bytes(path), str(path))


def parse_object(data: str | bytes, where: str) -> dict[str, Any]:
    """Return the object that a JSON text is.

    Args:
        data: The text.
        where: What to say in errors.

    Raises:
        UserError: If it is not JSON, or not an object.
    """
    value = parse_json(data, where)
    if not isinstance(value, dict):
        raise UserError("is not a JSON object", where)
    return value


def line_of(text: str, path: Iterable[str]) -> int | None:
    """Return the line of the innermost of keys that lie within each other.

    Args:
        text: JSON with at most one key a line.
        path: The keys, the outermost first.

    Returns:
        The line's number, or None where none of the keys is found.
    """
    position = None
    for key in path:
        quoted = re.escape(json.dumps(key, ensure_ascii=False))
        found = re.compile(rf"{quoted}\s*:").search(text, position or 0)
        if found is None:
            break
        position = found.start()
    return None if position is None else text.count("\n", 0, position) + 1
