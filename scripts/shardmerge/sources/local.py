"""Sources in local folders: files are known by their content, and jobs read them in place."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from shardmerge.base.errors import UserError
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import near_path, read_bytes
from shardmerge.base.identities import LockedFile
from shardmerge.base.printable import is_printable
from shardmerge.base.safetensors import Header, read_header
from shardmerge.base.weightfolders import is_component
from shardmerge.recipe.references import Reference
from shardmerge.sources.store import TEMPLATES, Origin, Store, StoreContext

#: How names end that are of files of weights and of nothing else.
_SURE_ENDS = (".safetensors", ".ckpt")


class FolderStore(Store):
    """A folder that holds config.json and safetensors files, with or without an index."""

    kind = "local"
    title = "local folder"
    known_by: ClassVar[tuple[str, ...]] = ("sha256", "sample")
    pickled = (
        "Its weights are pickled. Write `allow_pickle: true` into the configuration and run "
        "`snakemake convert`, which writes them as safetensors without running code that is in "
        "them."
    )

    def __init__(self, location: str, reference: Reference, context: StoreContext) -> None:
        super().__init__(location, reference, context)
        self.folder = Path(location).expanduser()

    @classmethod
    def claims(cls, location: str) -> bool:
        """Whether there is such a folder."""
        return Path(location).expanduser().is_dir()

    @classmethod
    def told(cls, origin: Origin) -> str:
        """Return `a folder`: which one is the configuration's, not the lock's."""
        return "a folder"

    @property
    def where(self) -> str:
        """The model, and its folder where that is called otherwise."""
        model = self.reference.model
        return model if model == str(self.folder) else f"{model} in {str(self.folder)!r}"

    @property
    def place(self) -> str:
        """The folder."""
        return f"the folder {str(self.folder)!r}"

    def told_of(self, name: str) -> str:
        """Return a file's path."""
        return str(self.folder / name)

    def names(self) -> Collection[str]:
        """Return the names of its files, as a repository would have them."""
        if not self.folder.is_dir():
            message = f"there is no folder {str(self.folder)!r}"
            raise UserError(message, self.reference.model, near_path(self.folder))
        return folder_files(self.folder)

    def origin(self) -> Origin:
        """Return nothing: a folder is pinned by the content of its files alone."""
        return Origin()

    def identity(self, name: str) -> LockedFile:
        """Return the size of a file and its content's identity, remembered by its stamp."""
        return self.context.identities.of(self._within(name))

    def read_now(self, name: str) -> bytes:
        """Return a small file; its identity is asked for with those of the others."""
        return read_bytes(self._within(name))

    def read(self, name: str, locked: LockedFile, origin: Origin) -> bytes:
        """Return a small file; ``check`` has compared it with the lock."""
        return read_bytes(self.folder / name)

    def headers(self, names: Collection[str]) -> Mapping[str, Header]:
        """Return the headers of safetensors files."""
        return {name: read_header(self._within(name)) for name in names}

    def _within(self, name: str) -> Path:
        """Return the path of a file, shown not to lead out of the folder."""
        return self.folder / safe_name(name, self.folder, self.where)

    def spans(self, spans: Sequence[tuple[str, int, int]], origin: Origin) -> list[bytes]:
        """Return ranges of files' bytes."""
        return [_span(self.folder / name, begin, end) for name, begin, end in spans]

    def path(self, name: str, origin: Origin) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def check(self, files: Mapping[str, LockedFile], lock: str) -> None:
        """Check that the folder still holds what its lock says."""
        for name, file in files.items():
            if what := self._difference(self.folder / name, file):
                raise UserError(
                    f"model {self.reference.model!r}: {str(self.folder / name)!r} {what}",
                    lock,
                    "Restore the file, or run `snakemake lock` to lock the model as it is now.",
                )
        self.context.identities.save()

    def _difference(self, path: Path, locked: LockedFile) -> str | None:
        if not path.is_file():
            return "is gone"
        if path.stat().st_size != locked.size:
            return f"has {path.stat().st_size} bytes where the lock has {locked.size}"
        if not self.context.identities.of(path).is_like(locked):
            return "has another content than when it was locked"
        return None


class FileStore(FolderStore):
    """A single file of weights."""

    kind = "file"
    title = "local file"

    def __init__(self, location: str, reference: Reference, context: StoreContext) -> None:
        super().__init__(location, reference, context)
        self.file = Path(location).expanduser()
        self.folder = self.file.parent

    @classmethod
    def claims(cls, location: str) -> bool:
        """Whether there is such a file, or there would be one and no folder has that name."""
        path = Path(location).expanduser()
        return path.is_file() or (location.endswith(_SURE_ENDS) and _is_path(path))

    @classmethod
    def told(cls, origin: Origin) -> str:
        """Return `a file`: which one is the configuration's, not the lock's."""
        return "a file"

    @property
    def is_one_file(self) -> bool:
        """It is."""
        return True

    @property
    def where(self) -> str:
        """The checkpoint, and its file where that is called otherwise."""
        model = self.reference.model
        return model if model == str(self.file) else f"{model} in {str(self.file)!r}"

    @property
    def place(self) -> str:
        """The file."""
        return f"the file {str(self.file)!r}"

    def names(self) -> Collection[str]:
        """Return the name of the file."""
        if not self.file.is_file():
            message = f"there is no file {str(self.file)!r}"
            raise UserError(message, self.reference.model, near_path(self.file))
        return [safe_name(self.file.name, None, self.where)]

    def _within(self, name: str) -> Path:
        """Return the file's path: the user named it, so that it may be a link."""
        return self.folder / name


def _is_path(path: Path) -> bool:
    """Whether a path that is no file may be meant as one: no folder, no part of a repository."""
    return not path.is_dir() and ":" not in str(path)


def _span(path: Path, begin: int, end: int) -> bytes:
    try:
        with path.open("rb") as file:
            found = os.pread(file.fileno(), end - begin, begin)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from None
    if len(found) < end - begin:
        raise UserError(f"ends before byte {end}", str(path))
    return found


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, nothing if it is none or may not be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_weight(name: str) -> bool:
    return name.endswith(".safetensors") and is_printable(name)


def folder_files(folder: Path) -> list[str]:
    """Return a folder's files as a repository would name them, sorted.

    Of folders that belong to no model only the weights are told.
    """
    top = list(folder.iterdir())
    below = [path for path in top if not path.name.startswith(".")]
    known = {path for path in below if is_component(path.name) or f"{path.name}/" == TEMPLATES}
    inner = [p for path in below for p in _entries(path) if path in known or _is_weight(p.name)]
    paths = [*top, *inner]
    return sorted(p.relative_to(folder).as_posix() for p in paths if p.is_file())
