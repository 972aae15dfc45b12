"""What a run exports: forms and variants of every build, where they lie, where they go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.base.weightfolders import shard_name
from shardmerge.export.form import Form
from shardmerge.export.registry import EXPORT_FORMS, form_of
from shardmerge.plan.paths import CHECKSUMS, Paths
from shardmerge.plan.plan import Build, Plan
from shardmerge.recipe.references import Reference
from shardmerge.recipe.settings import Settings
from shardmerge.run.exported_shards import (
    ExportedShard,
    description_of,
    exported_shard,
    scheme_options,
    small_files,
)
from shardmerge.run.measured import Measured


@dataclass(frozen=True)
class Exports:
    """The exports of a plan under a configuration.

    Args:
        settings: The configuration.
        plan: Its plan.
        paths: Of the results.
    """

    settings: Settings
    plan: Plan
    paths: Paths

    def check(self) -> None:
        """Tell before any job what cannot be exported.

        Raises:
            UserError: If so.
        """
        for form in self.forms():
            form.check(self.options(form.name))

    def check_models(self) -> list[str]:
        """Return sentences on what exports of the plan's models leave out.

        Raises:
            UserError: If a model cannot be exported as the configuration asks for.
        """
        found = [
            form.check_model(self.options(form.name), name, partial(description_of, build.digest))
            for form in self.forms()
            for name, build in self.plan.loadable.items()
        ]
        return [sentence for sentence in found if sentence]

    def forms(self) -> list[Form]:
        """Return the forms that are asked for."""
        return [form for form in EXPORT_FORMS if form.variants(self.options(form.name))]

    def options(self, form: str) -> Mapping[str, Any]:
        """Return the configuration of a form, which it may share with others."""
        return self.settings["exports"][form_of(form).key]

    def variants(self, form: str) -> list[str]:
        """Return the names of a form's variants."""
        return list(form_of(form).variants(self.options(form)))

    def mirrors(self) -> list[str]:
        """Return the forms that have a shard for each of the model's."""
        return [form.name for form in self.forms() if form.mirrors]

    def made(self, name: str, form: str, variant: str) -> list[str]:
        """Return what the jobs of a variant make, before it is a package: a folder, or files."""
        if not form_of(form).mirrors:
            return [self.paths.export(name, form, variant)]
        build = self.plan.builds[name]
        files = [self.paths.export(name, form, file) for file in small_files(build)]
        return self.shards(name, form) + files

    def shard(self, name: str, form: str, shard: str) -> ExportedShard:
        """Return the job of a shard of a form that mirrors the model.

        Args:
            name: Of the build.
            form: The form's.
            shard: The shard's name in the model's folder, without its ending.
        """
        file = f"{shard}.safetensors"
        build, options = self.plan.builds[name], self.options(form)
        return exported_shard(build, file, form, options, self.paths)

    def shards(self, name: str, form: str) -> list[str]:
        """Return the shards of such a form."""
        jobs = self.plan.builds[name].shards
        return [self.paths.export(name, form, shard_name(job.output)) for job in jobs]

    def scheme_options(self, form: str) -> str:
        """Return the options of such a form as its jobs are told them."""
        return scheme_options(form, self.options(form))

    def comparisons(self, name: str, form: str) -> list[str]:
        """Return what comparisons of the shards of such a form found."""
        files = [shard_name(job.output) for job in self.plan.builds[name].shards]
        stems = [file.removesuffix(".safetensors") for file in files]
        return [self.paths.export(name, "work", f"{form}/{stem}.json") for stem in stems]

    def checks(self, name: str, form: str) -> list[str]:
        """Return the paths of what the checks of a build's variants found."""
        return [self.paths.export_check(name, form, v) for v in self.variants(form)]

    def packages(self) -> list[str]:
        """Return what shows that every export is made, checked and packaged.

        What that follows from is among it, since Snakemake makes nothing anew that was deleted
        below what is up to date.
        """
        found = []
        for name in self.plan.loadable:
            for form in self.forms():
                for variant in self.variants(form.name):
                    found += self.made(name, form.name, variant)
                found.append(self.paths.export(name, form.name, CHECKSUMS))
        return found

    def folder(self, name: str, form: str) -> str:
        """Return the folder of an export's package."""
        return os.path.dirname(self.paths.export(name, form, CHECKSUMS))

    def found(self, name: str, *, waits: bool) -> list[str]:
        """Return what the checks of a build's exports found.

        Args:
            name: Of the build.
            waits: Whether it is to be made where it is not there.
        """
        paths = [path for form in self.forms() for path in self.checks(name, form.name)]
        return [path for path in paths if waits or os.path.lexists(path)]

    def receipts(self) -> list[str]:
        """Return the receipts of the uploads of all exports."""
        return [
            self.paths.export_receipt(name, form.name)
            for name in self.plan.loadable
            for form in self.forms()
        ]

    def label(self, name: str, form: str, variant: str) -> str:
        """Return what a variant is called in file names and tables."""
        return form_of(form).label(name, variant)

    def identity(self, form: str, variant: str) -> str:
        """Return the digest of what besides the model decides the content of a variant."""
        return digest(form_of(form).identity(self.options(form), variant))

    def repositories(self, name: str) -> dict[str, str]:
        """Return the repositories that a build's forms go to, none if nothing is published."""
        if not self.settings["publish"]["repository"]:
            return {}
        return {form.name: self.repository(name, form.name) for form in self.forms()}

    def repository(self, name: str, form: str) -> str:
        """Return the repository that a form of a build goes to.

        Raises:
            UserError: If it is no repository, or would take several packages.
        """
        title, section = form_of(form).title, form_of(form).key
        key = f"configuration: exports.{section}.repository"
        own = self.settings["publish"]["repository"] or ""
        pattern = self.options(form)["repository"] or (own and f"{own}-{{form}}")
        if not pattern:
            hint = "Write `publish: {repository: owner/{name}}`."
            raise UserError("names no repository to publish to", key, hint)
        if len(self.plan.models) > 1 and "{name}" not in pattern:
            message = f"{pattern!r} would take {len(self.plan.models)} models"
            raise UserError(message, key, "Use `{name}`.")
        forms = [one for one in self.forms() if one.key == section]
        if len(forms) > 1 and "{form}" not in pattern:
            raise UserError(f"{pattern!r} would take {len(forms)} forms", key, "Use `{form}`.")
        repository = pattern.replace("{name}", name).replace("{form}", title)
        if not Reference(repository).is_hub_name:
            hint = "Write `owner/{name}-" + title + "`."
            raise UserError(f"{repository!r} is no Hub repository", key, hint)
        if repository == own.replace("{name}", name):
            raise UserError(f"{repository!r} is the model's repository", key, "Name another.")
        return repository

    def measured(self, build: Build) -> Iterator[Measured]:
        """Yield a build's exports as models that benchmarks run on."""
        for form in self.forms():
            for variant in self.variants(form.name):
                folder = self.folder(build.name, form.name)
                if below := form.folder(variant):
                    folder = os.path.join(folder, below)
                made = self.made(build.name, form.name, variant)
                content = [build.digest, [j.digest for j in build.shards]]
                yield Measured(
                    name=self.label(build.name, form.name, variant),
                    folder=folder,
                    files=(*made, self.paths.export_check(build.name, form.name, variant)),
                    identity=digest([content, form.name, self.identity(form.name, variant)]),
                    size=build.bytes_written,
                    build=build.name,
                    tokenizer=self.paths.model(build.name),
                    parent=build.name,
                )
