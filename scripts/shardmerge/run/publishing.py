"""What a run publishes: models, their exports, adapters; where each goes and what shows that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.plan.paths import CHECKSUMS, SIGNATURE, Paths
from shardmerge.plan.plan import Plan
from shardmerge.recipe.references import Reference
from shardmerge.recipe.settings import Settings
from shardmerge.run.exports import Exports


@dataclass(frozen=True)
class Parcel:
    """A folder that goes to a repository of its own.

    Args:
        folder: It.
        kind: ``model``, ``adapter`` or ``export``.
        repository: Where it goes.
    """

    folder: str
    kind: str
    repository: str


@dataclass(frozen=True)
class Publishing:
    """The uploads of a plan under a configuration.

    Args:
        settings: The configuration.
        plan: Its plan.
        paths: Of the results.
        exports: Of the plan.
    """

    settings: Settings
    plan: Plan
    paths: Paths
    exports: Exports

    def check(self) -> None:
        """Tell before any job what cannot be published as it is configured.

        Raises:
            UserError: If so.
        """
        options, where = self.settings["publish"], "configuration: publish"
        sign = options["sign"]
        if sign["key"] and sign["sigstore"]:
            hint = "Leave one of them out."
            raise UserError("asks for a key and for sigstore", f"{where}.sign", hint)
        if (options["tag"] or options["branch"]) and not options["repository"]:
            hint = "Write `repository: owner/{name}` beside it."
            raise UserError("names no repository", f"{where}.repository", hint)

    @property
    def signs(self) -> bool:
        """Whether what is published is signed."""
        sign = self.settings["publish"]["sign"]
        return bool(sign["key"] or sign["sigstore"])

    def key(self) -> str | None:
        """Return the file of the private key, None where sigstore signs.

        Raises:
            UserError: If it is not there.
        """
        key = self.settings["publish"]["sign"]["key"]
        if key and not Path(key).is_file():
            where = "configuration: publish.sign.key"
            raise UserError(f"{key!r} is no file", where, "It is a private key in PEM.")
        return key

    def parcels(self) -> list[Parcel]:
        """Return all that is published, models first, since other cards name them.

        Raises:
            UserError: If a repository is none, or takes several.
        """
        found = [*self._models(), *self._exports(), *self._adapters()]
        seen: dict[str, Parcel] = {}
        for parcel in found:
            if (other := seen.setdefault(parcel.repository, parcel)) is not parcel:
                raise UserError(
                    f"{parcel.repository!r} would take {other.folder} and {parcel.folder}",
                    "configuration: publish.repository",
                    "Give each a repository of its own.",
                )
        return found

    def signatures(self, folder: str) -> list[str]:
        """Return the signature of what a folder holds, none if nothing is signed."""
        return [f"{folder}/{SIGNATURE}"] if self.signs else []

    def uploads(self) -> list[str]:
        """Return the receipts of all uploads."""
        names = [*self.plan.models, *self.plan.adapters]
        models = [self.paths.build(name, "published.json") for name in names]
        return [*models, *self.exports.receipts()]

    def receipts(self) -> list[str]:
        """Return the receipts of all uploads, and that of the collection."""
        found = self.uploads()
        return found + ([self.collected()] if found and self.collection else [])

    def packages(self) -> list[str]:
        """Return what shows that all that is published is made, and signed if that is asked for."""
        folders = [self.paths.model(name) for name in self.plan.models]
        folders += [self.paths.adapter(name) for name in self.plan.adapters]
        found = [f"{folder}/{CHECKSUMS}" for folder in folders] + self.exports.packages()
        signed = [path for sums in found for path in self.signatures(os.path.dirname(sums))]
        return found + signed

    def listing(self) -> dict[str, list[str]]:
        """Return folders, kinds, repositories and signatures of all that is published, as lists."""
        parcels = self.parcels()
        found = {
            "folder": [parcel.folder for parcel in parcels],
            "kind": [parcel.kind for parcel in parcels],
            "repo": [parcel.repository for parcel in parcels],
        }
        signed = [path for parcel in parcels for path in self.signatures(parcel.folder)]
        return found | ({"signature": signed} if signed else {})

    @property
    def collection(self) -> str | None:
        """Title of the collection of all repositories, None if none is asked for."""
        return self.settings["publish"]["collection"]

    def collected(self) -> str:
        """Return the path of the receipt of the collection."""
        return f"{self.settings['results']}/collection.published.json"

    def repository(self, name: str) -> str:
        """Return the Hub repository that a build or an adapter is published to.

        Raises:
            UserError: If none is configured, or several would go to one.
        """
        pattern = self.settings["publish"]["repository"]
        where = "configuration: publish.repository"
        count = len(self.plan.models) + len(self.plan.adapters)
        if not pattern:
            raise UserError("names no repository to publish to", where, "Write `owner/{name}`.")
        if count > 1 and "{name}" not in pattern:
            what = "models and adapters" if self.plan.adapters else "models"
            raise UserError(f"{pattern!r} would take {count} {what}", where, "Use `{name}`.")
        repository = pattern.replace("{name}", name)
        if not Reference(repository).is_hub_name:
            raise UserError(f"{repository!r} is no Hub repository", where, "Write `owner/{name}`.")
        return repository

    def adapters_of(self, name: str) -> list[str]:
        """Return the repositories of the adapters that are made of a build or belong on it."""
        if not self.settings["publish"]["repository"]:
            return []
        return [
            self.repository(adapter.name)
            for adapter in self.plan.adapters.values()
            if name in (adapter.model, adapter.base)
        ]

    def base_of(self, adapter: str) -> str | None:
        """Return the repository of an adapter's base, where this run publishes the base."""
        base = self.plan.adapters[adapter].base
        published = self.settings["publish"]["repository"] and base in self.plan.models
        return self.repository(base) if published else None

    def own_of(self, adapter: str) -> str | None:
        """Return an adapter's repository, None if nothing is published."""
        return self.repository(adapter) if self.settings["publish"]["repository"] else None

    def _models(self) -> Iterator[Parcel]:
        for name in self.plan.models:
            yield Parcel(self.paths.model(name), "model", self.repository(name))

    def _exports(self) -> Iterator[Parcel]:
        for name in self.plan.loadable:
            for form in self.exports.forms():
                repository = self.exports.repository(name, form.name)
                yield Parcel(self.exports.folder(name, form.name), "export", repository)

    def _adapters(self) -> Iterator[Parcel]:
        for name in self.plan.adapters:
            yield Parcel(self.paths.adapter(name), "adapter", self.repository(name))
