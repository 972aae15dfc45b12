"""Where models come from, and the lock file that pins them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError, misspelt
from shardmerge.base.files import near_path, read_bytes, write_text
from shardmerge.base.identities import Identities
from shardmerge.base.pathnames import MOST_NAME_BYTES, check_path, too_long
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.references import Reference, parse_reference
from shardmerge.sources import quantised
from shardmerge.sources.changes import describe_changes
from shardmerge.sources.local import check_folder, lock_adapter, lock_folder
from shardmerge.sources.lock import Lock, LockedSource, read_lock
from shardmerge.sources.pickles import Conversion, find_conversion
from shardmerge.sources.tokens import complete, lacking, with_tokens

#: What to do about a model that the Hub does not give.
_HAVE = "A folder that has the model already is named under `sources` in the configuration."
Say = Callable[[str], None]
T = TypeVar("T")


class Sources:
    """Resolves a recipe's references to local folders or Hub repositories.

    Args:
        folders: The configuration's ``sources``: reference to local folder.
        models: Folder that fetched models go to.
        cache: Folder for what can be computed again (content identities).
        converted: Folder of conversions of pickled weights, or None where these are not allowed.
        dry: Whether locks that are made are only returned, and not written.
        keep: Whether the cache is written.
    """

    def __init__(
        self,
        folders: Mapping[str, str],
        models: Path,
        cache: Path,
        converted: Path | None = None,
        *,
        dry: bool = False,
        keep: bool = True,
    ) -> None:
        self._folders = dict(folders)
        self._models = models
        self._converted = converted
        self._conversions: dict[str, Conversion] = {}
        self._identities = Identities(cache / "identities.json", keep=keep)
        self._dry = dry

    def folder(self, reference: Reference) -> Path | None:
        """Return the local folder of a reference, or None where it is on the Hub.

        Raises:
            UserError: If it is neither.
        """
        if conversion := self._conversions.get(reference.model):
            return conversion.output
        return self._given_folder(reference)

    def _given_folder(self, reference: Reference) -> Path | None:
        for key in (reference.model, reference.path):
            if key in self._folders:
                return Path(self._folders[key]).expanduser()
        path = Path(reference.path).expanduser()
        if path.is_dir():
            check_path(reference.path, f"model {reference.model!r}")
            return path
        if not reference.is_hub_name:
            raise UserError(
                f"model {reference.model!r} is neither a folder, nor a document's name, nor a "
                "Hub repository (owner/name)",
                hint=f"Did you mean {near!r}?"
                if (near := misspelt(reference.path, self._folders))
                else near_path(path)
                or "Give its folder under `sources` in the configuration, or write the Hub's "
                "`owner/name`.",
            )
        return None

    def path(self, key: str, locked: LockedSource, file: str) -> str:
        """Return the path at which jobs find a source's file."""
        if locked.kind == "hub":
            return str(self._models / f"{slug(locked.repo)}@{locked.commit}" / file)
        return str(self.folder(parse_reference(key)) / file)

    def conversions(self, recipe: Recipe) -> list[Conversion]:
        """Return the conversions that a recipe's sources need, done or not.

        From then on such a source is where its conversion is.
        """
        found = {}
        for reference, role in recipe.named if self._converted else ():
            key = reference.model
            folder = self._given_folder(reference)
            if folder is None or not folder.is_dir():
                continue
            output = self._converted / slug(key)
            if one := find_conversion(folder, key, role, output, self._identities):
                found[key] = one
        self._conversions |= found
        return list(found.values())

    def lock(self, recipe: Recipe, *, write: bool, renew: bool, say: Say) -> Lock:
        """Return a recipe's lock: read, and made or completed where it may be.

        Args:
            recipe: The parsed recipe.
            write: Whether what a lock lacks may be locked (a job must not).
            renew: Whether to lock all sources anew.
            say: Takes one line for the user.

        Raises:
            UserError: If a source cannot be locked, changed since it was, or may not be locked.
        """
        path = lock_path(recipe.path)
        old = read_lock(path) if path.exists() else Lock({})
        found: dict[str, LockedSource] = {}
        new = []
        for reference, role in recipe.named:
            key = reference.model
            where = recipe.where(key)
            if key in recipe.stages or key in found:
                other = "a document" if key in recipe.stages else "a model"
                raise UserError(f"names {key!r} both as an adapter and as {other}", where)
            folder = self._told_at(where, self.folder, reference)
            locked = None if renew else old.sources.get(key)
            if locked and locked.role != role:
                locked = None
            if locked and locked.kind != ("local" if folder else "hub"):
                now = f"the folder {str(folder)!r}" if folder else "the Hub"
                raise UserError(
                    f"model {key!r} was locked from {_origin(locked)} but is now {now}",
                    str(path),
                    "Run `snakemake lock` to lock it anew.",
                )
            if locked is None:
                if not write:
                    raise UserError(f"has no lock of model {key!r}", str(path))
                locked = self._told_at(where, self._lock_one, reference, role, folder, say)
                new.append(key)
            elif folder:
                check_folder(folder, locked, key, str(path), self._identities)
            if role == "model" and (more := lacking(recipe, locked)):
                if not write:
                    raise UserError(f"has no {more[0]} of model {key!r}", str(path))
                reader = self._reader(locked, folder, say)
                locked = complete(locked, more, reader, f"model {key!r}")
                new = list(dict.fromkeys([*new, key]))
            named = f"model {key!r}"
            if role == "model" and self._told_at(where, quantised.lacking, locked, named):
                if not write:
                    raise UserError(f"does not tell how model {key!r} is quantised", str(path))
                locked = self._told_at(where, self._with_format, key, locked, folder, say)
                new = list(dict.fromkeys([*new, key]))
            found[key] = locked
        if new:

            def reader(key: str) -> Callable[[str], bytes]:
                return self._reader(found[key], self.folder(parse_reference(key)), say)

            found = with_tokens(found, reader)
        lock = Lock(found)
        if new:
            if self._dry:
                say(f"would lock {', '.join(new)} in {path}; a dry run writes no lock")
            else:
                _write(path, lock)
                say(f"locked {', '.join(new)} in {path}")
            if renew:
                for line in describe_changes(old, lock):
                    say(f"  {line}")
        return lock

    @staticmethod
    def _told_at(where: str, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return call(*arguments)
        except UserError as error:
            raise error.at(where) from None

    def _lock_one(
        self, reference: Reference, role: str, folder: Path | None, say: Say
    ) -> LockedSource:
        if folder is not None:
            _check_there(folder, reference.model)
            lock = lock_adapter if role == "adapter" else lock_folder
            return lock(folder, reference.model, self._identities)
        from shardmerge.sources import hub

        try:
            return hub.lock_source(reference.path, reference.revision, role=role, progress=say)
        except UserError as error:
            near = near_path(Path(reference.path).expanduser())
            hint = " ".join(filter(None, [near, error.hint, _HAVE]))
            raise UserError(error.message, error.where, hint) from None

    def _with_format(
        self, key: str, locked: LockedSource, folder: Path | None, say: Say
    ) -> LockedSource:
        """Return a source's lock with what tells how its weights are quantised."""
        reader = self._reader(locked, folder, say)
        if folder is not None:
            read_tensors = partial(quantised.read_from_folder, folder)
        else:
            from shardmerge.sources import hub

            read_tensors = partial(hub.read_tensors, locked, progress=say)
        return quantised.complete(locked, reader, read_tensors, f"model {key!r}")

    @staticmethod
    def _reader(locked: LockedSource, folder: Path | None, say: Say) -> Callable[[str], bytes]:
        """Return what reads a small file of a source that is locked."""
        if folder is not None:
            return lambda name: read_bytes(folder / name)
        from shardmerge.sources import hub

        return lambda name: hub.read_file(locked, name, progress=say)


def _check_there(folder: Path, reference: str) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}", reference, near_path(folder))


def lock_path(recipe: str | os.PathLike[str]) -> Path:
    """Return the path of a recipe's lock: beside it, ``NAME.lock.json``."""
    return Path(recipe).with_suffix(".lock.json")


def lock_text(lock: Lock) -> str:
    """Return the text of a lock file, one tensor a line: a 70B lock's diffs stay small."""
    text = json.dumps(lock.to_json(), indent=1, ensure_ascii=False) + "\n"
    return re.sub(
        r"\[\n\s+\"(\w+)\",\n\s+\[([\d,\s]*)\],\n\s+(\d+),\n\s+(\d+)\n\s+\]",
        lambda m: f'["{m[1]}", [{", ".join(m[2].replace(",", " ").split())}], {m[3]}, {m[4]}]',
        text,
    )


def slug(reference: str) -> str:
    """Return a reference as a folder name of at most 100 bytes; different ones differ in it."""
    name = reference.strip("./").replace("/", "--")
    plain = re.sub(r"[^\w.+@-]+", "-", name)
    long = too_long(plain)
    if plain == name and "--" not in reference and not long:
        return plain
    if long:
        plain = plain.encode()[: MOST_NAME_BYTES - 20].decode(errors="ignore")
    return f"{plain}-{digest(reference)[:6]}"


def _origin(locked: LockedSource) -> str:
    return f"the Hub ({locked.repo}@{locked.commit})" if locked.kind == "hub" else "a folder"


def _write(path: Path, lock: Lock) -> None:
    Lock.from_json(lock.to_json(), f"the lock of {path.name} that would be written")
    try:
        write_text(path, lock_text(lock))
    except UserError as error:
        hint = f"{error.hint} The lock lies beside its recipe, which you may copy elsewhere."
        raise UserError(f"the lock {error.message}", error.where, hint) from None
