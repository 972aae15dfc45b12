"""The plan as data: all jobs of a workflow, decided before the first byte of weights moves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import read_text
from shardmerge.base.forms import Written
from shardmerge.base.sealed import AGAIN, unseal
from shardmerge.base.weightfolders import indexes_of, shard_name
from shardmerge.plan.adapter_description import AdapterDescription
from shardmerge.plan.description import BuildDescription
from shardmerge.plan.files import use_plan
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.schedule import Schedule
from shardmerge.plan.trialroom import TrialRoom


@dataclass(frozen=True)
class ShardJob:
    """A job that writes one safetensors file.

    Args:
        output: Path of the file.
        digest: The job's identity, and the name of its specification.
        sources: Paths of the source files that it reads, in the specification's order.
        deltas: Paths of the stored task vectors that it reads.
        bytes_read, bytes_written: What it must move.
        memory: Bytes that it needs at most.
        ahead: Bytes more for each of several compute threads; 0 where no tensor is made ready
            before its elements, so that more than one gain little.
        check_memory: Bytes that the check of the file needs at most.
        torch: Whether the job or the check of its file imports torch.
        card: Whether the job computes on an accelerator.
    """

    output: str
    digest: str
    sources: tuple[str, ...]
    deltas: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    memory: int
    ahead: int
    check_memory: int
    torch: bool
    card: bool

    def memory_for(self, threads: int) -> int:
        """Return the bytes that it needs at most with so many compute threads."""
        # several make as many tensors ready, while one tensor's elements are made
        return self.memory + (threads * self.ahead if threads > 1 else 0)


@dataclass(frozen=True)
class FetchJob:
    """A job that fetches one file of a Hub repository at a commit; sizes in bytes."""

    output: str
    repo: str
    commit: str
    file: str
    size: int
    sha256: str | None
    git_oid: str | None


@dataclass(frozen=True)
class Build:
    """A model to be built.

    Args:
        name: Of the folder below the results; of the stage too, unless it is a trial.
        digest: Of all that the package is made from; names the build's description.
        shards: In the order of their names.
        files: Small files that the package copies or reads: name in the package to path, of a
            source or of what is written for the tokenizer.
        tokenizer: Paths of the source files that the tokenizer's are written from.
        statistics: Which statistics there are of it (``algebra.interference.worth_showing``).
        varied: Whether not all of its tensors are made of the same.
        trial: Whether it is a trial of a sweep, and not a model that was asked for by itself.
        checkpoint: Whether it is a checkpoint of any kind, and no model that transformers loads.
    """

    name: str
    digest: str
    shards: tuple[ShardJob, ...]
    files: Mapping[str, str]
    tokenizer: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    varied: bool = False
    trial: bool = False
    checkpoint: bool = False

    @property
    def indexes(self) -> list[str]:
        """Names of the indexes, one for each folder that has several weight files."""
        return indexes_of(shard_name(job.output) for job in self.shards)

    @property
    def bytes_written(self) -> int:
        """Bytes of all its shards."""
        return sum(job.bytes_written for job in self.shards)


@dataclass(frozen=True)
class FactorJob:
    """A job that writes a file of LoRA factors.

    Args:
        output: Path of the file.
        digest: The job's identity, and the name of its specification.
        update: Path of the file of updates that it reads.
        bytes_read, bytes_written: What it must move, at most.
        memory: Bytes that it needs at most.
    """

    output: str
    digest: str
    update: str
    bytes_read: int
    bytes_written: int
    memory: int


#: Bytes of weights up to which an adapter is loaded on its base, and not on its architecture alone.
LOADED_BYTES = 8_000_000_000


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter to be made.

    Args:
        name: Of the stage, and of the folder below the results.
        digest: Of all that the package is made from; names the adapter's description.
        updates: Jobs that write what the model has beyond its base, in the order of their names.
        factors: Jobs that make factors of them, in the same order.
        model: What it is extracted from, as the recipe names it.
        base: What it is an adapter of, likewise.
    """

    name: str
    digest: str
    updates: tuple[ShardJob, ...]
    factors: tuple[FactorJob, ...]
    model: str = ""
    base: str = ""


@dataclass(frozen=True)
class PlannedSource:
    """A source as a whole, for benchmarks: its folder, its files' paths, its weights' bytes."""

    folder: str
    files: tuple[str, ...]
    identity: str
    size: int


@dataclass(frozen=True)
class Plan:
    """All that the workflow's rules ask for.

    Args:
        builds: By name.
        deltas: Jobs of stored task vectors.
        fetches: By path.
        sources: The recipes' source models, by reference.
        unread: Weight files that no job reads: path to bytes.
        schedule: In which order shards are made, and the disk that this takes.
        hashes: Large files of local models that jobs read, and what each is known by: path to
            identity.
        lean: Bytes of disk that it takes at most if fetched files are deleted once used.
        room: What trials of sweeps take.
        warnings: One sentence each.
        made: Jobs that make sources, by the digests of what they make.
        adapters: LoRA adapters to be made, by name.
    """

    builds: Mapping[str, Build]
    deltas: tuple[ShardJob, ...]
    fetches: Mapping[str, FetchJob]
    sources: Mapping[str, PlannedSource]
    unread: Mapping[str, int]
    warnings: tuple[str, ...]
    schedule: Schedule = Schedule((), 0, ())
    lean: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, MadeJob] = field(default_factory=dict)
    room: TrialRoom = TrialRoom()
    adapters: Mapping[str, Adapter] = field(default_factory=dict)

    @cached_property
    def models(self) -> Mapping[str, Build]:
        """The models that were asked for by themselves."""
        return {name: build for name, build in self.builds.items() if not build.trial}

    @cached_property
    def loadable(self) -> Mapping[str, Build]:
        """Those of them that transformers loads, and lm-eval measures: no other checkpoints."""
        return {name: build for name, build in self.models.items() if not build.checkpoint}

    @cached_property
    def trials(self) -> Mapping[str, Build]:
        """The trials of sweeps."""
        return {name: build for name, build in self.builds.items() if build.trial}

    @property
    def shards(self) -> tuple[ShardJob, ...]:
        """The shards of all models, trials too, and of the updates that adapters are made from."""
        models = [job for build in self.builds.values() for job in build.shards]
        return (*models, *(job for adapter in self.adapters.values() for job in adapter.updates))

    @property
    def torch(self) -> bool:
        """Whether a job needs torch."""
        if self.adapters or self.made:
            return True
        return any(job.torch for job in (*self.shards, *self.deltas))

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data; ``from_json`` inverts it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that ``to_json`` wrote."""
        return cls(
            builds={
                name: Build(
                    **{
                        **b,
                        "shards": _jobs(b["shards"]),
                        "tokenizer": tuple(b["tokenizer"]),
                        "statistics": tuple(b["statistics"]),
                    }
                )
                for name, b in data["builds"].items()
            },
            deltas=_jobs(data["deltas"]),
            fetches={path: FetchJob(**job) for path, job in data["fetches"].items()},
            sources={
                name: PlannedSource(m["folder"], tuple(m["files"]), m["identity"], m["size"])
                for name, m in data["sources"].items()
            },
            unread=data["unread"],
            warnings=tuple(data["warnings"]),
            schedule=Schedule.from_json(data["schedule"]),
            lean=data["lean"],
            hashes=data["hashes"],
            made={key: MadeJob.from_json(job) for key, job in data["made"].items()},
            room=TrialRoom(**data["room"]),
            adapters={
                name: Adapter(
                    name=a["name"],
                    digest=a["digest"],
                    updates=_jobs(a["updates"]),
                    factors=tuple(FactorJob(**job) for job in a["factors"]),
                    model=a["model"],
                    base=a["base"],
                )
                for name, a in data["adapters"].items()
            },
        )


#: What there is to do before there can be a plan: nothing.
NO_PLAN = Plan({}, (), {}, {}, {}, ())


@dataclass
class Planned:
    """A plan and what its jobs read: specifications and descriptions of results, by digest."""

    plan: Plan
    specs: dict[str, ShardSpec | Written] = field(default_factory=dict)
    descriptions: dict[str, BuildDescription | AdapterDescription] = field(default_factory=dict)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Return the plan in a file.

    Raises:
        UserError: If it is not there or damaged.
    """
    path = Path(path)
    try:
        return Plan.from_json(unseal(read_text(path), path.stem, str(path)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("is damaged", str(path), AGAIN) from None


def read_plan_of(path: str | os.PathLike[str], name: str) -> Plan:
    """Return the plan in a file that builds a model of that name, as this process's own.

    Raises:
        UserError: As ``read_plan``, or if it builds none.
    """
    plan = read_plan(path)
    use_plan(Path(path).stem)
    if name not in plan.builds:
        hint = did_you_mean(name, plan.builds)
        raise UserError(f"the plan builds no model {name!r}", str(path), hint)
    return plan


def _jobs(rows: list[Mapping[str, Any]]) -> tuple[ShardJob, ...]:
    return tuple(
        ShardJob(**{**row, "sources": tuple(row["sources"]), "deltas": tuple(row["deltas"])})
        for row in rows
    )
