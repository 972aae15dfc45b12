"""Which names of files, tensors and repositories a source may have: what strangers wrote.

Names that the user wrote are the subject of ``pathnames``. Blanks, quotes and ``$`` are allowed:
no name reaches a shell as anything but a quoted word.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Collection
from pathlib import Path

from shardmerge.base.digest import is_hex
from shardmerge.base.errors import UserError, shortened
from shardmerge.base.printable import is_printable
from shardmerge.base.weightfolders import folder_of

#: Layers of a stack; the deepest models have some hundreds.
MAX_LAYERS = 10_000
#: What would be a layer, but for its number.
_BEYOND = re.compile(r"\.([0-9]{5,})\.")
#: Bytes of one part of a path. File systems take 255; `.NAME.claim.TOKEN.XXXXXXXX.new` is longest.
LONGEST_PART = 200
_LONGEST_PATH = 1000
_LONGEST_TENSOR = 1000
#: Ends of the names of files that are made beside others while these are written.
_OWN_ENDS = (".part", ".claim", ".new")
#: Characters of names without folders, and how many such a name has.
_PLAIN = f"{string.ascii_letters}{string.digits}_.-".encode()
_LONGEST_PLAIN = 200
_DIGITS = bytes.maketrans(string.digits.encode(), b"0" * 10)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def safe_name(name: object, folder: str | os.PathLike[str] | None, where: str) -> str:
    """Return the name of a source's file, shown to be harmless and to stay within its folder.

    Args:
        name: Relative path with forward slashes, from an index, a lock, a listing or a folder.
        folder: Local folder that the file must lie in after links are followed, or None.
        where: What to say in errors.

    Raises:
        UserError: If it is absolute, leads out, or is not fit for a file here; says why.
    """
    if why := _unfit(name):
        raise UserError(f"names a file {shortened(name)} that {why}", where)
    assert isinstance(name, str)
    if folder is not None:
        root, target = Path(folder).resolve(), (Path(folder) / name).resolve()
        if not target.is_relative_to(root) and not _hub_cache_blob(root, target):
            raise UserError(
                f"names a file {name!r} that is a link out of the model's folder", where
            )
    return name


def safe_tensor(name: str, where: str, *, any_name: bool = False) -> str:
    """Return the name of a tensor, shown to be one that models have.

    Args:
        name: From a header, an index or a lock.
        where: What to say in errors.
        any_name: Whether it may look as if it were of a folder: in a file of any kind.

    Raises:
        UserError: If it is empty, far too long, has characters that do not show, or the number of
            a layer that no model has.
    """
    if why := _unfit_tensor(name, any_name):
        raise UserError(f"names a tensor {shortened(name)} {why}", where)
    return name


def all_plain(names: Collection[str]) -> bool:
    """Return whether names of tensors are all so plain that ``safe_tensor`` has nothing to say.

    One look at all of them, as a large mixture has a hundred thousand. Where it says no, each name
    must be looked at.
    """
    sizes = set(map(len, names))
    joined = ".".join(names)
    if not sizes or min(sizes) < 1 or max(sizes) > _LONGEST_PLAIN or not joined.isascii():
        return False
    data = joined.encode()
    if data.translate(None, _PLAIN):
        return False
    # most have no number that is long enough to be looked at
    return b"00000" not in data.translate(_DIGITS) or not any(map(_BEYOND.search, names))


def is_repo(name: object) -> bool:
    """Return whether a value is the name of a Hub repository, ``owner/name``."""
    return isinstance(name, str) and _REPO.fullmatch(name) is not None


def is_commit(name: object) -> bool:
    """Return whether a value is a commit: 40 hexadecimal digits."""
    return is_hex(name, 40)


def _unfit(name: object) -> str | None:
    """Return what is wrong with a file's name, or None."""
    if not isinstance(name, str):
        return "is not a plain path within the model"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in parts[0]:
        return "is not a plain path within the model"
    if not is_printable(name):
        return "has characters that do not show"
    if any(part.startswith("-") for part in parts):
        return "begins with a hyphen, as an option does"
    if "{" in name or "}" in name:
        return "has a brace, which would stand for a wildcard"
    if max(map(byte_count, parts)) > LONGEST_PART or byte_count(name) > _LONGEST_PATH:
        return "is too long"
    if any(part.endswith(_OWN_ENDS) for part in parts):
        return "ends as unfinished files do here"
    return None


def _unfit_tensor(name: str, any_name: bool) -> str | None:
    """Return what is wrong with a tensor's name, or None."""
    if not name or len(name) > _LONGEST_TENSOR:
        return f"of {len(name)} characters"
    if not is_printable(name):
        return "that has characters that do not show"
    if folder_of(name) and not any_name:
        return f"as if it were of the folder {folder_of(name)!r}"
    if beyond := _BEYOND.search(name):
        layer = f"of layer {shortened(beyond[1])}"
        return f"{layer}; models of more than {MAX_LAYERS} layers are not merged here"
    return None


def byte_count(text: str) -> int:
    """Return the bytes that a name takes on disk."""
    return len(text.encode("utf-8", "surrogatepass"))


def _hub_cache_blob(root: Path, target: Path) -> bool:
    """Whether the target is a blob of the Hugging Face cache that the root is a snapshot in."""
    return root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
