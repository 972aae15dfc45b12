"""The jobs of exports that have a shard for each of the model's: what each reads, and needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from shardmerge.base.digest import canonical_json, digest
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.weightfolders import folder_of, shard_name
from shardmerge.export.schemes import scheme_of
from shardmerge.export.selection import (
    Selection,
    chosen_options,
    model_tensors,
    partners,
    select,
    with_options,
)
from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.paths import Paths
from shardmerge.plan.plan import Build
from shardmerge.sources.checkpoint_files import CONFIG

#: What a job takes besides its matrix: torch and the library.
_BASE = 600_000_000
#: Bytes for each stored byte of a matrix while it is quantised; NVFP4 takes most of all.
_WORK = 14


@dataclass(frozen=True)
class ExportedShard:
    """A job that quantises a shard.

    Args:
        source: The model's shard.
        others: The model's shards that hold what shares a scale with some of this one.
        identity: Digest of all that decides its bytes.
        memory: Bytes that it takes at most.
    """

    source: str
    others: tuple[str, ...]
    identity: str
    memory: int


def small_files(build: Build) -> list[str]:
    """Return the names of a model's files that its exports have too, besides shards."""
    names = dict.fromkeys([CONFIG, *build.files])
    return [*names, *build.indexes]


def scheme_options(scheme: str, options: Mapping[str, Any]) -> str:
    """Return the options of a scheme as JSON, for the command line of its jobs."""
    return canonical_json(chosen_options(scheme_of(scheme), options))


def exported_shard(
    build: Build, shard: str, scheme: str, options: Mapping[str, Any], paths: Paths
) -> ExportedShard:
    """Return the job of a shard.

    Args:
        build: The model.
        shard: The shard's name relative to the model's folder.
        scheme: How it is quantised.
        options: ``exports.compressed``.
        paths: Of the results.
    """
    text = scheme_options(scheme, options)
    jobs = {shard_name(job.output): job.digest for job in build.shards}
    others, largest = _needed(build.digest, shard, scheme, text)
    return ExportedShard(
        source=paths.model_file(build.name, shard),
        others=tuple(paths.model_file(build.name, name) for name in others),
        identity=digest([scheme, text, jobs[shard], [jobs[name] for name in others]]),
        memory=_BASE + _WORK * largest,
    )


@cache
def _needed(build: str, shard: str, scheme: str, options: str) -> tuple[tuple[str, ...], int]:
    """Return the other shards that a shard's job reads, and the bytes of its largest matrix."""
    selection = _selection(build, scheme, options).of(shard)
    tables = {one.file: one.tensors for one in description_of(build).shards}
    own = sorted(set(tables[shard]) & set(selection.weights))
    shared = partners(own, selection) if scheme_of(scheme).shared else set()
    others = [n for n, table in tables.items() if n != shard and not folder_of(n)
              and shared & set(table)]  # fmt: skip
    return tuple(others), max((tensor_bytes(*tables[shard][name]) for name in own), default=0)


@cache
def description_of(name: str) -> BuildDescription:
    """Return the description of a build, by its digest."""
    return load_description(name)


@cache
def _selection(build: str, scheme: str, options: str) -> Selection:
    from json import loads

    chosen = loads(options)
    made = with_options(scheme_of(scheme), chosen)
    return select(model_tensors(description_of(build)), made, chosen["ignore"])
