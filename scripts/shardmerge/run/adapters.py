"""The LoRA adapters of a run: what shows that each is made, and the bases that they are used on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shardmerge.base.digest import digest
from shardmerge.base.errors import UserError
from shardmerge.plan.paths import CHECKSUMS, Paths, check_record_path, record_path
from shardmerge.plan.plan import LOADED_BYTES, Adapter, FactorJob, Plan
from shardmerge.run.measured import Measured

#: Pages and pictures about an adapter.
ADAPTER_PAGES = ("adapter.html", "adapter.tsv", "errors.svg", "ranks.svg")


@dataclass(frozen=True)
class Adapters:
    """The adapters of a plan.

    Args:
        plan: The plan.
        paths: Of the results.
        base_of: Gives the model that a reference or a document's name stands for, None if it is
            not a whole one of this run.
    """

    plan: Plan
    paths: Paths
    base_of: Callable[[str], Measured | None]

    def factors(self, name: str, factors: str) -> FactorJob:
        """Return the job of a file of factors by adapter and file stem."""
        path = self.paths.factors(name, f"{factors}.safetensors")
        return next(job for job in self.plan.adapters[name].factors if job.output == path)

    def checks(self, name: str) -> list[str]:
        """Return what the checks of an adapter's updates and factors found."""
        adapter = self.plan.adapters[name]
        return [check_record_path(job.output) for job in (*adapter.updates, *adapter.factors)]

    def made(self) -> list[str]:
        """Return what shows that every adapter is made and checked."""
        return [file for name in self.plan.adapters for file in self._made(name)]

    def _made(self, name: str) -> list[str]:
        made = [path for job in self.plan.adapters[name].factors for path in _with_record(job)]
        return [*made, *self.checks(name), self.paths.adapter_file(name, CHECKSUMS)]

    def loaded(self, name: str) -> list[str]:
        """Return what shows that peft loads an adapter, none if its base is no whole model here."""
        base = self.base_of(self.plan.adapters[name].base)
        return [self.paths.build(name, "loaded.json")] if base else []

    def base(self, name: str) -> Measured:
        """Return the model that an adapter is used on.

        Raises:
            UserError: If it is no whole model of this run.
        """
        adapter = self.plan.adapters[name]
        if (base := self.base_of(adapter.base)) is None:
            raise UserError(
                f"is one of {adapter.base!r}, which is no whole model here, so that it cannot be "
                "loaded, measured or published",
                f"adapter {name!r}",
                "Extract it from a source, or from a document that is built too.",
            )
        return base

    def base_files(self, name: str) -> list[str]:
        """Return the files of the base that the test of loading reads."""
        base = self.base(name)
        if self.on_weights(name):
            return list(base.files)
        return [file for file in base.files if file.endswith("/config.json")]

    def on_weights(self, name: str) -> bool:
        """Whether an adapter is loaded on its base's weights, and not on its architecture alone."""
        return self.base(name).size <= LOADED_BYTES

    def load_bytes(self, name: str) -> int:
        """Return the bytes of the base that the test of loading has in memory."""
        return self.base(name).size if self.on_weights(name) else 0

    def measured(self) -> Iterator[Measured]:
        """Yield the adapters as models that benchmarks run on: their bases, and they on them.

        Raises:
            UserError: If the base of one is no whole model of this run.
        """
        for name, adapter in self.plan.adapters.items():
            base = self.base(name)
            yield Measured(
                name=name,
                folder=base.folder,
                files=(*base.files, self.paths.adapter_file(name, CHECKSUMS)),
                identity=digest(["adapter", base.identity, _identity(adapter)]),
                size=base.size,
                adapter=self.paths.adapter(name),
                parent=base.name,
            )


def _identity(adapter: Adapter) -> list[object]:
    return [adapter.digest, [job.digest for job in adapter.factors]]


def _with_record(job: FactorJob) -> tuple[str, str]:
    return job.output, record_path(job.output)
