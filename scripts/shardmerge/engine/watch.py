"""A job's sources: they are what the plan was made for, and stay so while the job reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.identities import FULL_HASH_BYTES, Identities, Stamp, stamp_of

_IDENTITY = re.compile("(sha256|sample):([0-9a-f]{64})")
_AGAIN = "Run the workflow again when nothing writes to it any more."
_OTHER = (
    "Restore the file, or run `snakemake lock` to lock the model as it is now. A file below "
    "resources/models is fetched anew once it is deleted."
)
#: Kind and value of an identity; both are empty if none is known.
_Known = tuple[str, str]


class Watch:
    """The files that a job reads.

    Args:
        identities: What the workflow's first process knows of local files; None to compare no
            content before the job.
    """

    def __init__(self, identities: Identities | None = None) -> None:
        self._identities = identities
        self._files: dict[Path, tuple[Stamp, _Known]] = {}

    def begin(self, path: Path, identity: str | None = None) -> None:
        """Note a file's stamp, and compare its content with an identity as far as that is cheap.

        A large file with a SHA-256 is not hashed for it.

        Raises:
            UserError: If it is not there, or is another.
        """
        stamp, known = stamp_of(path), _known(identity)
        self._files[path] = stamp, known
        if self._identities and not self._is(path, stamp, known):
            raise UserError("has another content than the plan was made for", str(path), _OTHER)

    def confirm(self, hashed: Mapping[Path, str] | None = None) -> None:
        """Make sure that no file changed since the job began to read it.

        A change of mode, another hard link or a touch moves times alone; then the content decides,
        where it is known.

        Args:
            hashed: The SHA-256 of files that the job has read whole.

        Raises:
            UserError: If one did.
        """
        hashed = hashed or {}
        for path, (stamp, known) in self._files.items():
            now, (kind, value) = stamp_of(path), known
            if now.file != stamp.file:
                raise UserError("changed while it was read", str(path), _AGAIN)
            if path in hashed and kind == "sha256":
                if hashed[path] != value:
                    raise UserError(
                        "has another content than the plan was made for", str(path), _OTHER
                    )
            elif now != stamp and not self._is_still(path, stamp, now, known):
                raise UserError("changed while it was read", str(path), _AGAIN)

    def _is(self, path: Path, stamp: Stamp, known: _Known) -> bool:
        kind, value = known
        if not kind or (kind == "sha256" and stamp.size > FULL_HASH_BYTES):
            return True
        found = self._identities.of(path)
        return value == (found.sha256 if kind == "sha256" else found.sample)

    def _is_still(self, path: Path, stamp: Stamp, now: Stamp, known: _Known) -> bool:
        """Whether a file of which only times moved has the content of its identity.

        Its time of content moves by a touch too; a sample cannot tell that from a change.
        """
        kind, value = known
        if self._identities and kind == "sha256":
            return sha256_of(path) == value
        if now.content != stamp.content:
            return False
        return not self._identities or self._is(path, now, known)


def _known(identity: str | None) -> _Known:
    found = _IDENTITY.fullmatch(identity or "")
    return (found[1], found[2]) if found else ("", "")
