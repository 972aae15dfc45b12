"""Files of text that models are measured with: locked by their content, as models are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import near_path
from shardmerge.base.identities import FULL_HASH_BYTES, Identities, LockedFile
from shardmerge.base.pathnames import check_path


def lock_text_file(path: str, where: str, identities: Identities) -> LockedFile:
    """Return size and hash of a file of text.

    Args:
        path: It, from the working directory.
        where: File and line of the recipe that names it.
        identities: Of local files.

    Raises:
        UserError: If it is not there, no file, empty, or too large.
    """
    check_path(path, where)
    if not Path(path).is_file():
        raise UserError(f"there is no file of text {path!r}", where, near_path(Path(path)))
    found = identities.of(Path(path))
    if not 0 < found.size <= FULL_HASH_BYTES:
        raise UserError(
            f"the text {path!r} has {found.size} bytes; a text has at least 1 and at most "
            f"{FULL_HASH_BYTES}",
            where,
        )
    return found


def check_texts(
    locked: Mapping[str, LockedFile], texts: Mapping[str, str], identities: Identities, lock: str
) -> None:
    """Check that texts have the contents that they were locked with.

    Args:
        locked: By path.
        texts: Those that a recipe names, each with file and line.
        identities: Of local files.
        lock: Path of the lock, for errors.

    Raises:
        UserError: If one is gone or has another content.
    """
    for path, where in texts.items():
        if path in locked and not lock_text_file(path, where, identities).is_like(locked[path]):
            raise UserError(
                f"the text {path!r} has another content than when it was locked",
                lock,
                "Restore the file, or run `snakemake lock` to lock it as it is now.",
            )
