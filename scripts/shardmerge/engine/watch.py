"""A job's sources: they are what the plan was made for, and stay so while the job reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.base.identities import FULL_HASH_BYTES, Identities, Stamp, stamp_of

_IDENTITY = re.compile("(?:sha256|sample):[0-9a-f]{64}")
_AGAIN = "Run the workflow again when nothing writes to it any more."
_OTHER = (
    "Restore the file, or run `snakemake lock` to lock the model as it is now. A file below "
    "resources/models is fetched anew once it is deleted."
)


class Watch:
    """The files that a job reads.

    Args:
        identities: What the workflow's first process knows of local files; None to compare no
            content before the job.
    """

    def __init__(self, identities: Identities | None = None) -> None:
        self._identities = identities
        self._files: dict[Path, tuple[Stamp, str | None]] = {}

    def begin(self, path: Path, identity: str | None = None) -> None:
        """Note a file's stamp, and compare its content with an identity as far as that is cheap.

        A large file with a SHA-256 is not hashed for it.

        Raises:
            UserError: If it is not there, or is another.
        """
        stamp = stamp_of(path)
        self._files[path] = stamp, identity
        if self._identities and not self._is(path, stamp, identity):
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
        for path, (stamp, identity) in self._files.items():
            now = stamp_of(path)
            kind, _, value = (identity or "").partition(":")
            sha256 = value if kind == "sha256" and _IDENTITY.fullmatch(identity) else None
            if now.file != stamp.file:
                raise UserError("changed while it was read", str(path), _AGAIN)
            if path in hashed and sha256:
                if hashed[path] != sha256:
                    raise UserError(
                        "has another content than the plan was made for", str(path), _OTHER
                    )
            elif now != stamp and not self._is_still(path, stamp, now, identity, sha256):
                raise UserError("changed while it was read", str(path), _AGAIN)

    def _is(self, path: Path, stamp: Stamp, identity: str | None) -> bool:
        kind, _, value = (identity or "").partition(":")
        if not identity or not _IDENTITY.fullmatch(identity):
            return True
        if kind == "sha256" and stamp.size > FULL_HASH_BYTES:
            return True
        found = self._identities.of(path)
        return value == (found.sha256 if kind == "sha256" else found.sample)

    def _is_still(
        self, path: Path, stamp: Stamp, now: Stamp, identity: str | None, sha256: str | None
    ) -> bool:
        """Whether a file of which only times moved has the content of its identity.

        Its time of content moves by a touch too; a sample cannot tell that from a change.
        """
        if self._identities and sha256:
            return sha256_of(path) == sha256
        if now.content != stamp.content:
            return False
        return not self._identities or self._is(path, now, identity)
