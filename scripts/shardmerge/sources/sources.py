"""Where models come from, and the lock file that pins them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shardmerge.base.claims import Say
from shardmerge.base.errors import UserError, misspelt
from shardmerge.base.files import near_path, write_text
from shardmerge.base.identities import Identities, LockedFile
from shardmerge.base.pathnames import check_path
from shardmerge.recipe.naming import slug
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.references import Reference, parse_reference
from shardmerge.recipe.variants import RecipeFamily
from shardmerge.sources import quantised
from shardmerge.sources.changes import describe_changes
from shardmerge.sources.local import FileStore, FolderStore
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor, read_lock
from shardmerge.sources.locking import lock_source
from shardmerge.sources.pickles import Conversion, find_conversion
from shardmerge.sources.store import Store, StoreContext
from shardmerge.sources.stores import claimant
from shardmerge.sources.texts import check_texts, lock_text_file
from shardmerge.sources.tokens import lacking, with_lacking, with_tokens

T = TypeVar("T")


class Sources:
    """Resolves a recipe's references to the places where models lie, and locks what is there.

    Args:
        folders: The configuration's ``sources``: reference to a folder, or to where else it is.
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
        #: Texts of locks that a dry run made and did not write, by path.
        self.unwritten: dict[Path, str] = {}
        self._stores: dict[str, Store] = {}

    def store(self, reference: Reference, say: Say | None = None) -> Store:
        """Return where the model or adapter of a reference lies.

        Args:
            reference: As the recipe names it.
            say: Takes one line for the user.

        Raises:
            UserError: If it is nowhere that models come from.
        """
        context = StoreContext(self._models, self._identities, say)
        if conversion := self._conversions.get(reference.model):
            return FolderStore(str(conversion.output), reference, context)
        for key in (reference.model, reference.path):
            if key in self._folders:
                location = self._folders[key]
                kind = claimant(location, bare_names=False) or FolderStore
                return kind(location, reference, context)
        kind = claimant(reference.path)
        if kind is None:
            raise self._nowhere(reference)
        if not kind.remote:
            check_path(reference.path, f"model {reference.model!r}")
        return kind(reference.path, reference, context)

    def _nowhere(self, reference: Reference) -> UserError:
        near = misspelt(reference.path, self._folders)
        return UserError(
            f"model {reference.model!r} is neither a folder, nor a document's name, nor a "
            "Hub repository (owner/name)",
            hint=f"Did you mean {near!r}?"
            if near
            else near_path(Path(reference.path).expanduser())
            or "Give its folder under `sources` in the configuration, or write the Hub's "
            "`owner/name`.",
        )

    def path(self, key: str, locked: LockedSource, file: str) -> str:
        """Return the path at which jobs find a source's file."""
        store = self._stores.get(key) or self.store(parse_reference(key))
        return store.path(file, locked.origin)

    def conversions(self, recipe: Recipe | RecipeFamily) -> list[Conversion]:
        """Return the conversions that a recipe's sources need, done or not.

        From then on such a source is where its conversion is.
        """
        found = {}
        for reference, role in recipe.named if self._converted else ():
            key = reference.model
            store = self.store(reference)
            if not isinstance(store, FolderStore) or not store.folder.is_dir():
                continue
            output = self._converted / slug(key)
            file = store.file.name if isinstance(store, FileStore) else None
            if one := find_conversion(store.folder, key, role, output, self._identities, file):
                found[key] = one
        self._conversions |= found
        return list(found.values())

    def lock(self, recipe: Recipe | RecipeFamily, *, write: bool, renew: bool, say: Say) -> Lock:
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
            store = self._stores[key] = self._told_at(where, self.store, reference, say)
            locked = None if renew else old.sources.get(key)
            if locked and locked.role != role:
                locked = None
            if locked:
                _check_kind(store, locked, str(path))
                store.check(locked.files, str(path))
            else:
                if not write:
                    raise UserError(f"has no lock of model {key!r}", str(path))
                locked = self._told_at(where, _lock, store, role)
                new.append(key)
            if role == "model" and (more := lacking(recipe, key, locked)):
                if not write:
                    raise UserError(f"has no {more[0]} of model {key!r}", str(path))
                locked = with_lacking(
                    locked,
                    more,
                    _reader(store, locked),
                    f"model {key!r}",
                    recipe.prompts.get(key, ()),
                )
                new = list(dict.fromkeys([*new, key]))
            named = f"model {key!r}"
            if role == "model" and self._told_at(where, quantised.lacking, locked, named):
                if not write:
                    raise UserError(f"does not tell how model {key!r} is quantised", str(path))
                locked = self._told_at(where, _with_format, store, locked)
                new = list(dict.fromkeys([*new, key]))
            found[key] = locked
        if new:
            found = with_tokens(found, lambda key: _reader(self._stores[key], found[key]))
        texts = self._texts(recipe, {} if renew else old.texts, write=write, lock=str(path))
        new += [text for text in texts if renew or text not in old.texts]
        lock = Lock(found, texts)
        if new:
            self._told_new(old, lock, new, path, renew=renew, say=say)
        return lock

    def _texts(
        self,
        recipe: Recipe | RecipeFamily,
        old: Mapping[str, LockedFile],
        *,
        write: bool,
        lock: str,
    ) -> dict[str, LockedFile]:
        """Return the files of text that a recipe names: as they are locked, or locked now."""
        wanted = recipe.texts
        if not write:
            if missing := [text for text in wanted if text not in old]:
                raise UserError(f"has no lock of the text {missing[0]!r}", lock)
            return {text: old[text] for text in wanted}
        check_texts(old, wanted, self._identities, lock)
        found = {
            text: old.get(text) or lock_text_file(text, where, self._identities)
            for text, where in wanted.items()
        }
        self._identities.save()
        return found

    def _told_new(
        self, old: Lock, lock: Lock, new: list[str], path: Path, *, renew: bool, say: Say
    ) -> None:
        """Write a lock that has something new, and say what."""
        if self._dry:
            self.unwritten[path] = lock_text(lock)
            say(f"would lock {', '.join(new)} in {path}; a dry run writes no lock")
        else:
            _write(path, lock)
            say(f"locked {', '.join(new)} in {path}")
        for line in describe_changes(old, lock) if renew else ():
            say(f"  {line}")

    @staticmethod
    def _told_at(where: str, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return call(*arguments)
        except UserError as error:
            raise error.at(where) from None


def _lock(store: Store, role: str) -> LockedSource:
    try:
        return lock_source(store, role)
    except UserError as error:
        raise store.explained(error) from None


def _check_kind(store: Store, locked: LockedSource, lock: str) -> None:
    if store.kind != locked.kind:
        raise UserError(
            f"model {store.reference.model!r} was locked from {locked.told} but is now "
            f"{store.place}",
            lock,
            "Run `snakemake lock` to lock it anew.",
        )


def _with_format(store: Store, locked: LockedSource) -> LockedSource:
    """Return a source's lock with what tells how its weights are quantised."""

    def read_tensors(tensors: Sequence[LockedTensor]) -> list[bytes]:
        return store.spans([(t.file, t.begin, t.end) for t in tensors], locked.origin)

    where = f"model {store.reference.model!r}"
    return quantised.with_parameters(locked, _reader(store, locked), read_tensors, where)


def _reader(store: Store, locked: LockedSource) -> Callable[[str], bytes]:
    """Return what reads a small file of a source that is locked."""
    return lambda name: store.read(name, locked.files[name], locked.origin)


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


def _write(path: Path, lock: Lock) -> None:
    Lock.from_json(lock.to_json(), f"the lock of {path.name} that would be written")
    try:
        write_text(path, lock_text(lock))
    except UserError as error:
        hint = f"{error.hint} The lock lies beside its recipe, which you may copy elsewhere."
        raise UserError(f"the lock {error.message}", error.where, hint) from None
