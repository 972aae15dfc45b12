"""The loopback Hub's repositories: folders, revisions, commits, files and their hashes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    path: str
    file: Path
    size: int
    sha256: str
    git_oid: str
    lfs: bool

    def sibling(self, blobs: bool) -> dict[str, Any]:
        """The row of the model's metadata."""
        row: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            row |= {"size": self.size, "blobId": self.git_oid}
            if self.lfs:
                row["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return row


@functools.cache
def _hashes(path: str, mtime: int, size: int) -> tuple[str, str]:
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            git.update(block)
    return sha256.hexdigest(), git.hexdigest()


def is_lfs(name: str, size: int) -> bool:
    """Whether the Hub keeps a file as LFS rather than in git."""
    return name.endswith((".safetensors", ".bin", ".gguf")) or size >= 1_000_000


class Store:
    """Repositories in a folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folders(self, repo: str) -> dict[str, Path]:
        """Return a repository's folders by revision name."""
        base = self.root / repo
        found = sorted(base.parent.glob(f"{base.name}*")) if base.parent.is_dir() else []
        split = [(*folder.name.partition("@"), folder) for folder in found if folder.is_dir()]
        return {rev or "main": folder for name, _, rev, folder in split if name == base.name}

    def entries(self, folder: Path) -> list[Entry]:
        """Return the files of a revision."""
        rows = []
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != ".hub.json":
                stat, name = file.stat(), file.relative_to(folder).as_posix()
                sha256, git = _hashes(str(file), stat.st_mtime_ns, stat.st_size)
                lfs = is_lfs(name, stat.st_size)
                rows.append(Entry(name, file, stat.st_size, sha256, git, lfs))
        return rows

    def commit_of(self, repo: str, folder: Path) -> str:
        """Return the 40-hex id of a folder's content."""
        rows = [[entry.path, entry.sha256] for entry in self.entries(folder)]
        return hashlib.sha1(json.dumps([repo, rows]).encode()).hexdigest()

    def settings(self, repo: str) -> dict[str, Any]:
        """Return what ``.hub.json`` says."""
        for folder in self.folders(repo).values():
            with contextlib.suppress(FileNotFoundError):
                return json.loads((folder / ".hub.json").read_text())
        return {}
