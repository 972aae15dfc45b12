"""The user's Hugging Face cache: a file that it holds already is not downloaded again."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from shardmerge.sources.hub.content import CHUNK, has_content
from shardmerge.sources.hub.partfile import PartFile

CacheUse = Literal["link", "copy", "off"]

#: ``ioctl`` that makes a file share the blocks of another (btrfs, XFS, bcachefs).
_FICLONE = 0x40049409
#: Below this a file is copied: a hard link would save nothing, and small files get edited.
_SMALL = 1 << 20


def find(repo: str, commit: str, name: str, wanted: str, size: int) -> Path | None:
    """Return the file in the Hugging Face cache that should have the wanted content, or None.

    The cache names blobs by what the Hub gives as their ETag: sha256, or git blob id of small
    files. Any repository's blob will do.

    Args:
        repo: Repository, looked into first.
        commit: Its commit; where links are not possible the cache has files by their names.
        name: Path in the repository.
        wanted: The hash.
        size: Bytes.
    """
    for path in _candidates(repo, commit, name, wanted):
        with contextlib.suppress(OSError):
            real = path.resolve(strict=True)
            if real.is_file() and real.stat().st_size == size and os.access(real, os.R_OK):
                return real
    return None


def take_blob(blob: Path, part: PartFile, use: CacheUse) -> str | None:
    """Make a target of a cached file: clone, hard link, or copy.

    A clone costs no space and is a file of its own. A hard link costs no space either, but is
    the cache's own file by a second name: nothing here ever writes into a source file, and the
    user deleting the one leaves the other. A symbolic link is not made, since cleaning the
    cache would break it.

    Args:
        blob: The cached file.
        part: The part file of the target, which a copy goes on with.
        use: ``copy`` rules out hard links.

    Returns:
        What was done, or None if the cached file's content turned out to be another.
    """
    if _clone(blob, part):
        part.reread()
        how = "cloned"
    elif use == "link" and part.locked.size >= _SMALL and _may_link(blob):
        if not has_content(blob, part.locked):
            return None
        if _link(blob, part.target):
            part.discard()
            return "linked"
        how = _copy(blob, part)
    else:
        how = _copy(blob, part)
    if part.finish():
        return how
    part.restart()
    return None


def _candidates(repo: str, commit: str, name: str, wanted: str) -> Iterator[Path]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    own = cache / f"models--{repo.replace('/', '--')}"
    yield own / "blobs" / wanted
    yield own / "snapshots" / commit / name
    with contextlib.suppress(OSError):
        yield from sorted(cache.glob(f"models--*/blobs/{wanted}"))


def _clone(blob: Path, part: PartFile) -> bool:
    with contextlib.suppress(OSError), open(blob, "rb") as source:
        fcntl.ioctl(part.fd, _FICLONE, source.fileno())
        return True
    return False


def _may_link(blob: Path) -> bool:
    """Whether whoever may read our files may read the cached one, which we do not chmod."""
    umask = os.umask(0)
    os.umask(umask)
    readable = 0o444 & ~umask
    return blob.stat().st_mode & readable == readable


def _link(blob: Path, target: Path) -> bool:
    with contextlib.suppress(OSError):  # another file system, or the system forbids it
        os.link(blob, target)
        return True
    return False


def _copy(blob: Path, part: PartFile) -> str:
    with open(blob, "rb") as source:
        source.seek(part.size)
        while block := source.read(CHUNK):
            part.append(block)
    return "copied"
