"""How a local file is recognised: by its stamp, and by the identity of its content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shardmerge.base.digest import digest, is_digest
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, read_text, sha256_of, write_json, write_text
from shardmerge.base.safetensors import MAX_HEADER_BYTES
from shardmerge.base.sealed import seal, unseal

#: Up to this size a file is identified by its SHA-256, above by a sample of it.
FULL_HASH_BYTES = 64 << 20
_SAMPLE_BLOCKS = 64
_SAMPLE_BYTES = 64 << 10


class Stamp(NamedTuple):
    """What changes when a file's content changes, and sometimes without that.

    Args:
        size: Bytes.
        mtime: When its content was changed, in ns; a program may set it at will.
        ctime: When anything of it was changed, its mode or its number of links too; set by the
            system alone.
        inode, device: Which file it is.
    """

    size: int
    mtime: int
    ctime: int
    inode: int
    device: int

    @property
    def file(self) -> tuple[int, ...]:
        """What no change of times moves."""
        return self.size, self.inode, self.device

    @property
    def content(self) -> tuple[int, ...]:
        """All but what a change of mode or another hard link changes."""
        return self.size, self.mtime, self.inode, self.device


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """Return the stamp of a file.

    Raises:
        UserError: If it is not there.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)


class Identities:
    """Content identities of local files, remembered by path and stamp.

    A file that was only touched is read again and found unchanged.

    Args:
        cache: JSON file that holds what earlier runs found; may be absent. In the folder ``hashed``
            beside it lie the SHA-256 that jobs found of large files, one JSON file for each.
        keep: Whether what this process finds is written there.
    """

    def __init__(self, cache: Path, *, keep: bool = True) -> None:
        self._cache = cache
        self._keep = keep
        self._known: dict[str, list] = {}
        self._changed = False
        if cache.exists():
            with contextlib.suppress(UserError):  # else it is made anew
                known = unseal(read_text(cache), cache.stem, str(cache))
                self._known = known if isinstance(known, dict) else {}

    def of(self, path: Path) -> LockedFile:
        """Return size and identity of a file: its SHA-256, or the sample of a large one.

        The sample is the SHA-256 of the size, the first blocks (for safetensors, the whole
        header) and 64 evenly spread blocks of 64 KiB. A large file has its SHA-256 besides if a
        job found that another content had the same sample.

        Raises:
            UserError: If it cannot be read, or changes meanwhile.
        """
        stamp = stamp_of(path)
        key = str(path.resolve())
        sha256, sample = self._remembered(key, stamp) or (None, None)
        if not (sha256 or sample):
            sha256, sample = _identify(path, stamp)
            self._known[key] = [*stamp, sha256, sample]
            self._changed = True
        if sample:
            known = self._hashed(path, sample)
            if len(known.get("seen", ())) > 1 and known.get("stamp") == list(stamp):
                sha256 = known["sha256"]
        return LockedFile(stamp.size, sha256=sha256, sample=sample)

    def save(self) -> None:
        """Write what was learnt to the cache."""
        if self._changed and self._keep:
            write_text(self._cache, seal(self._known, self._cache.stem))
            self._changed = False

    def learn(self, path: Path, stamp: Stamp, sample: str, sha256: str) -> str:
        """Keep the SHA-256 of a large file; return the first that it had with that sample."""
        seen = list(dict.fromkeys([*self._hashed(path, sample).get("seen", ()), sha256]))
        known = {"sample": sample, "seen": seen, "sha256": sha256, "stamp": list(stamp)}
        write_json(self._hashed_path(path), known)
        return seen[0]

    def _remembered(self, key: str, stamp: Stamp) -> tuple[str | None, str | None] | None:
        known = self._known.get(key)
        if not isinstance(known, list) or len(known) != len(stamp) + 2:
            return None
        sha256, sample = known[-2:]
        right = all(one is None or is_digest(one) for one in (sha256, sample))
        return (sha256, sample) if right and known[: len(stamp)] == list(stamp) else None

    def _hashed(self, path: Path, sample: str) -> dict:
        """Return what jobs found of a large file while it had a sample; nothing if none did."""
        try:
            known = load_json(self._hashed_path(path))
        except UserError:  # nothing is known yet, or nothing that can be used
            return {}
        seen = known.get("seen")
        right = isinstance(seen, list) and all(map(is_digest, [*seen, known.get("sha256")]))
        return known if right and seen and known.get("sample") == sample else {}

    def _hashed_path(self, path: Path) -> Path:
        return self._cache.parent / "hashed" / f"{digest(str(path.resolve()))}.json"


def _identify(path: Path, stamp: Stamp) -> tuple[str | None, str | None]:
    """Return the SHA-256 of a small file, or the sample of a large one."""
    if stamp.size <= FULL_HASH_BYTES:
        found = sha256_of(path), None
    else:
        found = None, _sample(path, stamp.size)
    if stamp_of(path) != stamp:
        raise UserError(
            "changed while it was read", str(path), "Wait until it is written, then run again."
        )
    return found


def _sample(path: Path, size: int) -> str:
    digest = hashlib.sha256(json.dumps([size, _SAMPLE_BLOCKS, _SAMPLE_BYTES]).encode())
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        head = length if path.suffix == ".safetensors" and length <= MAX_HEADER_BYTES else 0
        digest.update(prefix + file.read(max(head, _SAMPLE_BYTES)))
        for i in range(_SAMPLE_BLOCKS):
            offset = (size - _SAMPLE_BYTES) * i // (_SAMPLE_BLOCKS - 1)
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, offset))
    return digest.hexdigest()


@dataclass(frozen=True)
class LockedFile:
    """A file of a source.

    Args:
        size: Bytes.
        sha256: Of the content, where it is known.
        git_oid: Git blob id (SHA-1), which the Hub gives for small files instead.
        sample: For a large local file: digest of size, header and evenly spread blocks.
    """

    size: int
    sha256: str | None = None
    git_oid: str | None = None
    sample: str | None = None

    @property
    def identity(self) -> str:
        """What the content is known by: ``sha256:...``, ``git:...`` or ``sample:...``."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"git:{self.git_oid}" if self.git_oid else f"sample:{self.sample}"

    def is_like(self, other: LockedFile) -> bool:
        """Whether both have the same content, as far as both tell."""
        names = ("sha256", "git_oid", "sample")
        pairs = [(getattr(self, name), getattr(other, name)) for name in names]
        told = [pair for pair in pairs if None not in pair]
        return self.size == other.size and bool(told) and all(one == two for one, two in told)
