"""What a place that models come from must be able to do: a folder, the Hub, or another kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from shardmerge.base.claims import Say
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities, LockedFile
from shardmerge.base.safetensors import Header
from shardmerge.recipe.references import Reference

#: The folder of a model's further chat templates, the only one below it that counts.
TEMPLATES = "additional_chat_templates/"


class Origin(NamedTuple):
    """What pins a source that is not on this machine.

    Args:
        repo: Where it lies; None for a source that jobs read where it is.
        revision: What was asked for (branch, tag or commit), or None.
        commit: The 40 hexadecimal digits of the version that it had.
    """

    repo: str | None = None
    revision: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class StoreContext:
    """What stores share.

    Args:
        models: Folder that fetched models go to.
        identities: Cache of the identities of local files.
        say: Takes one line for the user.
    """

    models: Path
    identities: Identities
    say: Say | None = None


class Store(ABC):
    """One source where it lies. A kind of source is a subclass, listed in ``stores.STORES``.

    Args:
        location: Where it is, as the recipe or the configuration writes it, without revision.
        reference: The model or adapter as the recipe names it.
        context: What stores share.
    """

    #: Its name in locks.
    kind: ClassVar[str]
    #: What people read in tables.
    title: ClassVar[str]
    #: Keys of a lock that files of it may be known by: fields of ``LockedFile``.
    known_by: ClassVar[tuple[str, ...]]
    #: Whether its files are pinned by an ``Origin`` and fetched by jobs, not read where they are.
    remote: ClassVar[bool] = False
    #: How its locations are written, with what they are of, for errors of locks.
    repo_form: ClassVar[str] = "location"
    #: Whether its locations look like those of folders, so that they count only where none fits.
    bare_names: ClassVar[bool] = False
    #: What to do about weights that are there as pickles only, if that is special.
    pickled: ClassVar[str | None] = None

    def __init__(self, location: str, reference: Reference, context: StoreContext) -> None:
        self.location, self.reference, self.context = location, reference, context

    @classmethod
    @abstractmethod
    def claims(cls, location: str) -> bool:
        """Whether a location is one of this kind, as far as that shows without the network."""

    @classmethod
    def pins(cls, repo: str) -> bool:
        """Whether a lock of this kind may have a value as the ``repo`` of its origin."""
        return cls.claims(repo)

    @classmethod
    @abstractmethod
    def told(cls, origin: Origin) -> str:
        """Return in words, for the middle of a sentence, where a source of this kind is from."""

    @classmethod
    def hub_name(cls, origin: Origin) -> str | None:
        """Return the Hub's name of a source, for tools that know such names only."""
        return None

    @classmethod
    def page(cls, origin: Origin) -> str | None:
        """Return the address of a Web page about a source, or None."""
        return None

    @classmethod
    def fetch(
        cls, origin: Origin, name: str, locked: LockedFile, target: Path, **options: Any
    ) -> Any:
        """Bring a file to its place, whole and with the locked content, or not at all.

        Args:
            origin: Of the source.
            name: The file's name in it.
            locked: Its size and identity.
            target: Where it goes.
            options: ``retries``, ``cache_use`` and ``progress`` of ``hub.fetch``.

        Returns:
            A dataclass that tells how it came.

        Raises:
            UserError: If it cannot be had.
        """
        raise UserError(f"a {cls.title} is read where it is, not fetched", str(target))

    @property
    @abstractmethod
    def where(self) -> str:
        """What errors call it."""

    @property
    def place(self) -> str:
        """What it is called in the middle of a sentence, as long as nothing pins it."""
        return self.told(Origin())

    def told_of(self, name: str) -> str:
        """Return what errors call a file of it."""
        return f"{self.where}/{name}"

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return the names of its files, with ``/`` where one lies in a folder below.

        Raises:
            UserError: If the source is not there.
        """

    @abstractmethod
    def origin(self) -> Origin:
        """Return what pins it as it is now."""

    @abstractmethod
    def identity(self, name: str) -> LockedFile:
        """Return the size of a file and what it is known by."""

    @abstractmethod
    def read(self, name: str, locked: LockedFile, origin: Origin) -> bytes:
        """Return a small file as it is locked.

        Raises:
            UserError: If it cannot be had, or has another content.
        """

    @property
    def is_one_file(self) -> bool:
        """Whether it is a single file, which was asked for by its name."""
        return False

    def read_now(self, name: str) -> bytes:
        """Return a small file of the source as it is now."""
        return self.read(name, self.identity(name), self.origin())

    @abstractmethod
    def headers(self, names: Collection[str]) -> Mapping[str, Header]:
        """Return the headers of safetensors files, of which no more is read."""

    @abstractmethod
    def spans(self, spans: Sequence[tuple[str, int, int]], origin: Origin) -> list[bytes]:
        """Return small ranges of files' bytes, in order.

        Args:
            spans: File, first byte, the one behind the last.
            origin: Of the source as it is locked.

        Raises:
            UserError: If they cannot be had whole.
        """

    @abstractmethod
    def path(self, name: str, origin: Origin) -> str:
        """Return the path at which jobs find a file."""

    def check(self, files: Mapping[str, LockedFile], lock: str) -> None:  # noqa: B027
        """Check that it still holds what its lock says, where that can change.

        Args:
            files: As they are locked, by name.
            lock: Path of the lock, for errors.

        Raises:
            UserError: If a file is gone or has other content; names the first.
        """

    def explained(self, error: UserError) -> UserError:
        """Return an error of locking it, with what else the user can do."""
        return error
