"""Sources on the Hugging Face Hub, as a ``Store``. Its client is loaded only where it is needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.filenames import is_repo, safe_name
from shardmerge.base.files import near_path
from shardmerge.base.identities import LockedFile
from shardmerge.base.safetensors import Header
from shardmerge.recipe.naming import slug
from shardmerge.recipe.references import WEIGHT_ENDS
from shardmerge.sources.store import Origin, Store

if TYPE_CHECKING:
    from shardmerge.sources.hub.locking import Commit

#: What to do about a model that the Hub does not give.
_HAVE = "A folder that has the model already is named under `sources` in the configuration."


class HubStore(Store):
    """A repository on the Hub, pinned by a commit."""

    kind = "hub"
    title = "Hub"
    known_by: ClassVar[tuple[str, ...]] = ("sha256", "git_oid")
    remote = True
    repo_form = "repository's `owner/name`"
    bare_names = True

    @classmethod
    def claims(cls, location: str) -> bool:
        """Whether it has the form ``owner/name``, with or without ``:file`` behind it."""
        return is_repo(location.partition(":")[0])

    @classmethod
    def pins(cls, repo: str) -> bool:
        """Whether it has the form ``owner/name``."""
        return is_repo(repo)

    @classmethod
    def told(cls, origin: Origin) -> str:
        """Return the Hub with repository and commit."""
        return f"the Hub ({origin.repo}@{origin.commit})" if origin.repo else "the Hub"

    @classmethod
    def hub_name(cls, origin: Origin) -> str | None:
        """Return the repository."""
        return origin.repo

    @classmethod
    def page(cls, origin: Origin) -> str | None:
        """Return the repository's page, or that of a commit in it."""
        page = f"https://huggingface.co/{origin.repo}"
        return f"{page}/tree/{origin.commit}" if origin.commit else page

    @classmethod
    def fetch(
        cls, origin: Origin, name: str, locked: LockedFile, target: Path, **options: Any
    ) -> Any:
        """Download a file, or take it from the Hugging Face cache: ``hub.fetch``."""
        from shardmerge.sources import hub

        return hub.fetch(origin.repo, origin.commit, name, locked, target, **options)

    @property
    def where(self) -> str:
        """The repository and the revision that is asked for."""
        return self.reference.model

    @cached_property
    def _now(self) -> Commit:
        from shardmerge.sources import hub

        reference, say = self.reference, self.context.say
        return hub.commit_of(self._repo, reference.revision, progress=say)

    def names(self) -> Collection[str]:
        """Return the names of the files of the commit that the revision is at now, or the file."""
        if self._file is None:
            return self._now.names
        file = safe_name(self._file, None, self.where)
        if file not in self._now.names:
            weights = [name for name in self._now.names if name.endswith(WEIGHT_ENDS)]
            raise UserError(f"has no file {file!r}", self._repo, did_you_mean(file, weights))
        return [file]

    def origin(self) -> Origin:
        """Return repository, revision and the commit that it is at now."""
        return Origin(self._repo, self.reference.revision, self._now.commit)

    @property
    def is_one_file(self) -> bool:
        """Whether a file of the repository is named."""
        return self._file is not None

    @property
    def _repo(self) -> str:
        return self.reference.path.partition(":")[0]

    @property
    def _file(self) -> str | None:
        """The one file that is asked for, None for all of the repository."""
        _, colon, file = self.reference.path.partition(":")
        return file if colon else None

    def identity(self, name: str) -> LockedFile:
        """Return the size and hash that the Hub tells of a file."""
        return self._now.identity(name)

    def read(self, name: str, locked: LockedFile, origin: Origin) -> bytes:
        """Return a small file of the locked commit, with the locked content."""
        from shardmerge.sources import hub

        return hub.Commit(*origin, self.context.say).content(name, locked)

    def headers(self, names: Collection[str]) -> Mapping[str, Header]:
        """Return the headers of safetensors files, by a range request each."""
        return self._now.headers(names)

    def spans(self, spans: Sequence[tuple[str, int, int]], origin: Origin) -> list[bytes]:
        """Return ranges of files of the locked commit, by a request each."""
        from shardmerge.sources import hub

        return hub.Commit(*origin, self.context.say).spans(spans)

    def path(self, name: str, origin: Origin) -> str:
        """Return the path that the file is fetched to."""
        return str(self.context.models / f"{slug(origin.repo)}@{origin.commit}" / name)

    def explained(self, error: UserError) -> UserError:
        """Return an error with what may have been meant: a folder, or one under `sources`."""
        near = near_path(Path(self.reference.path).expanduser())
        hint = " ".join(filter(None, [near, error.hint, _HAVE]))
        return UserError(error.message, error.where, hint)
