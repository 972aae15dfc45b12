"""The content that a lock asks for: its name, its hash, whether a file has it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.hashing import Hasher
from shardmerge.base.identities import LockedFile

CHUNK = 1 << 20


def wanted_digest(locked: LockedFile, where: str) -> str:
    """Return the hash that a file must have: its sha256, or its git blob id.

    Raises:
        UserError: If the lock has neither.
    """
    wanted = locked.sha256 or locked.git_oid
    if wanted is None:
        raise UserError("has no sha256 in the lock", where, "Run `snakemake lock` to renew it.")
    return wanted


def new_hasher(locked: LockedFile) -> Hasher:
    """Return an empty hash of the locked kind.

    A git blob id is the SHA-1 of ``blob SIZE``, a zero byte, and the content:
    https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    """
    if locked.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % locked.size, usedforsecurity=False)


def has_content(path: Path, locked: LockedFile) -> bool:
    """Whether a file has the locked content; its bytes are read unless the size differs."""
    if not path.is_file() or path.stat().st_size != locked.size:
        return False
    hasher = new_hasher(locked)
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            hasher.update(block)
    return hasher.hexdigest() == (locked.sha256 or locked.git_oid)
