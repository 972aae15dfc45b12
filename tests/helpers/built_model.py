"""A tiny model merged in this process, as the workflow's jobs would: shards, records, checks."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.models import llama
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.files import write_json, write_text
from shardmerge.check.shard import check_shard
from shardmerge.engine import build_shard
from shardmerge.engine.stored import stored_deltas
from shardmerge.package.config import output_config
from shardmerge.package.index import index_text, make_index
from shardmerge.package.verify import verify_model
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import BuildDescription, load_description
from shardmerge.plan.files import load_spec
from shardmerge.plan.paths import check_record_path, record_path
from shardmerge.plan.plan import Build, ShardJob
from shardmerge.plan.records import VerifyRecord, load_record, recorded_tensors
from shardmerge.recipe.settings import load_settings

RECIPE = """\
name: donor
merge_method: task_arithmetic
base_model: lab/base
models:
  - model: lab/tuned
    parameters: {weight: 0.7}
  - model: lab/long
    parameters: {weight: 1}
dtype: float16
---
name: merged
merge_method: linear
base_model: lab/long
parameters: {normalize: false}
models:
  - model: lab/long
    parameters:
      weight:
        - {filter: v_proj, value: [1, 0.25, 0]}
        - {value: 1}
  - model: donor
    parameters:
      weight:
        - {filter: v_proj, value: [0, 0.75, 1]}
        - {value: 0}
dtype: float16
"""
SOURCES = ("lab/base", "lab/tuned", "lab/long")
#: A tensor that the recipe merges.
MERGED = "model.layers.1.self_attn.v_proj.weight"
#: Sizes of models whose tensors are larger than the sample of a check.
LARGE = {"hidden": 64, "inter": 160, "vocab": 300, "kv": 192}


#: What a verification may find, as ``verify.json`` has it.
VERIFIED: dict[str, Any] = {
    "passed": True,
    "name": "merged",
    "build": "0" * 64,
    "shards": 3,
    "tensors": 183,
    "bytes": 8642,
    "hashed": 3,
    "copies": 100,
    "recomputed_independently": 83,
    "recomputed_by_engine_steps": 0,
    "elements": 4321,
    "largest_error_in_bounds": 0.5,
    "undecided": 0,
    "nonfinite": 0,
    "not_sampled": [],
    "task_vectors": 0,
    "task_vector_elements": 0,
    "sources": {"hashed": 7, "sampled": 2},
    "source_sha256": {},
}


@dataclass
class Built:
    """A merged model and what its jobs know.

    Args:
        build: The last of the plan's builds.
        description: Of the build.
    """

    build: Build
    description: BuildDescription

    @property
    def folder(self) -> Path:
        return Path(self.build.shards[0].output).parent

    @property
    def results(self) -> Path:
        return self.folder.parent

    def records(self, kind: str = "records") -> list[Path]:
        path = {"records": record_path, "checks": check_record_path}[kind]
        return [Path(path(job.output)) for job in self.build.shards]

    def shard_with(self, tensor: str) -> tuple[ShardJob, ShardSpec]:
        """Return the job and the specification of the shard that holds a tensor."""
        for job in self.build.shards:
            spec = load_spec(job.digest)
            if tensor in [t.name for t in spec.tensors]:
                return job, spec
        raise KeyError(tensor)


def changed(description: BuildDescription, **changes: Any) -> BuildDescription:
    """Return a description with other values, given as its JSON has them."""
    return BuildDescription.from_json(description.to_json() | changes, "a test")


def inputs_of(job: ShardJob, spec: ShardSpec) -> tuple[dict[tuple[str, str], Path], list[Path]]:
    """Return a job's sources by (model, file), and its stored task vectors."""
    deltas = [Path(path) for path in job.deltas]
    files = spec.required_files(stored_deltas(spec, deltas))
    return dict(zip(files, map(Path, job.sources), strict=True)), deltas


def check(job: ShardJob, shard: Path | None = None) -> dict[str, Any]:
    """Return what ``check_shard`` finds of a job's output, or of another file in its place."""
    spec = load_spec(job.digest)
    sources, deltas = inputs_of(job, spec)
    told = load_record(record_path(job.output))
    found = shard or Path(job.output)
    return check_shard(spec, found, sources, deltas, told)


def build_model(recipe: str = RECIPE, models: dict[str, Any] | None = None, **config: Any) -> Built:
    """Merge a recipe in the working directory.

    Args:
        recipe: Its text; it names models of ``SOURCES``.
        models: Sizes of the sources, as ``models.llama`` takes them.
        config: Configuration besides recipe and sources.
    """
    for seed, name in enumerate(SOURCES):
        if not Path("models", name).exists():
            sizes = {"layers": 3, "files": 2 + seed} | (models or {})
            llama(Path("models", name), seed, **sizes)
    return merge(recipe, sources={name: f"models/{name}" for name in SOURCES}, **config)


def merge(recipe: str, **config: Any) -> Built:
    """Merge a recipe in the working directory; configuration as in ``build_model``, and sources."""
    write_text("recipe.yaml", recipe)
    settings = load_settings({"recipes": ["recipe.yaml"], **config})
    plan = load_plan(settings, say=lambda line: None)
    for job in [*plan.deltas, *(j for b in plan.builds.values() for j in b.shards)]:
        spec = load_spec(job.digest)
        sources, deltas = inputs_of(job, spec)
        output = Path(job.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        sums = {path: recorded_tensors(path) for path in deltas}
        record = build_shard(spec, sources, output, deltas=deltas, sums=sums).to_json()
        write_json(record_path(output), {"spec": job.digest, **record})
        write_json(check_record_path(job.output), check(job))
    build = list(plan.builds.values())[-1]
    built = Built(build, load_description(build.digest))
    for name, source in build.files.items():
        (built.folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, built.folder / name)
    config_file = built.folder / "config.json"
    config_file.write_text(output_config(config_file.read_text(), built.description, ""))
    for name in build.indexes:
        write_text(built.folder / name, index_text(make_index(built.description, name)))
    return built


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def verify(
    built: Built,
    checks: Iterable[Path] | None = None,
    records: Iterable[Path] | None = None,
) -> VerifyRecord:
    """Return what the verification of a model finds."""
    return verify_model(
        built.build.digest,
        built.description,
        built.folder,
        built.records("checks") if checks is None else checks,
        built.records() if records is None else records,
    )
