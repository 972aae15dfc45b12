"""Where models come from, and the lock file that pins them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shardmerge.changes import describe_changes
from shardmerge.digest import digest
from shardmerge.errors import UserError, misspelt
from shardmerge.files import load_json, read_bytes, write_text
from shardmerge.local import Identities, check_folder, lock_adapter, lock_folder
from shardmerge.lock import Lock, LockedSource
from shardmerge.pickles import Conversion, find_conversion
from shardmerge.recipe import Recipe
from shardmerge.references import Reference, parse_reference
from shardmerge.tokenizer.comparing import with_tokens
from shardmerge.tokenizer.locking import complete, lacking

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
    """

    def __init__(
        self,
        folders: Mapping[str, str],
        models: Path,
        cache: Path,
        converted: Path | None = None,
    ) -> None:
        self._folders = dict(folders)
        self._models = models
        self._converted = converted
        self._conversions: dict[str, Conversion] = {}
        self._identities = Identities(cache / "identities.json")

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
            return path
        if not reference.is_hub_name:
            raise UserError(
                f"model {reference.model!r} is neither a folder, nor a document's name, nor a "
                "Hub repository (owner/name)",
                hint=f"Did you mean {near!r}?"
                if (near := misspelt(reference.path, self._folders))
                else "Give its folder under `sources` in the configuration, or write the Hub's "
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
            write: Whether a missing lock may be made (a job must not).
            renew: Whether to lock all sources anew.
            say: Takes one line for the user.

        Raises:
            UserError: If a source cannot be locked, changed since it was, or may not be locked.
        """
        path = lock_path(recipe.path)
        old = Lock.from_json(load_json(path), str(path)) if path.exists() else Lock({})
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
            found[key] = locked
        if new:

            def reader(key: str) -> Callable[[str], bytes]:
                return self._reader(found[key], self.folder(parse_reference(key)), say)

            found = with_tokens(found, reader)
        lock = Lock(found)
        if new:
            self._write(path, lock)
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
            lock = lock_adapter if role == "adapter" else lock_folder
            return lock(folder, reference.model, self._identities)
        from shardmerge import hub

        try:
            return hub.lock_source(reference.path, reference.revision, role=role, progress=say)
        except UserError as error:
            hint = " ".join(filter(None, [error.hint, _HAVE]))
            raise UserError(error.message, error.where, hint) from None

    @staticmethod
    def _reader(locked: LockedSource, folder: Path | None, say: Say) -> Callable[[str], bytes]:
        """Return what reads a small file of a source that is locked."""
        if folder is not None:
            return lambda name: read_bytes(folder / name)
        from shardmerge import hub

        return lambda name: hub.read_file(locked, name, progress=say)

    @staticmethod
    def _write(path: Path, lock: Lock) -> None:
        text = json.dumps(lock.to_json(), indent=1, ensure_ascii=False) + "\n"
        # One tensor a line: a lock of 70B stays readable and diffs stay small.
        text = re.sub(
            r"\[\n\s+\"(\w+)\",\n\s+\[([\d,\s]*)\],\n\s+(\d+),\n\s+(\d+)\n\s+\]",
            lambda m: f'["{m[1]}", [{", ".join(m[2].replace(",", " ").split())}], {m[3]}, {m[4]}]',
            text,
        )
        try:
            write_text(path, text)
        except OSError as error:
            raise UserError(
                f"the lock cannot be written ({error.strerror})",
                str(path),
                "Copy the recipe to a folder that you may write to.",
            ) from None


def lock_path(recipe: str | os.PathLike[str]) -> Path:
    """Return the path of a recipe's lock: beside it, ``NAME.lock.json``."""
    return Path(recipe).with_suffix(".lock.json")


def slug(reference: str) -> str:
    """Return a reference as a folder name; different references give different names."""
    name = reference.strip("./").replace("/", "--")
    plain = re.sub(r"[^\w.+@-]+", "-", name)
    return plain if plain == name and "--" not in reference else f"{plain}-{digest(reference)[:6]}"


def _origin(locked: LockedSource) -> str:
    return f"the Hub ({locked.repo}@{locked.commit})" if locked.kind == "hub" else "a folder"
