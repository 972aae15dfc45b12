"""The plan: all jobs of a workflow, decided before the first byte of weights moves.

A pure function of recipes, locks and configuration. ``planning.load_plan`` keeps it on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shardmerge import expression as ex
from shardmerge.compose import Composer
from shardmerge.digest import digest
from shardmerge.dtypes import DTYPES
from shardmerge.engine.memory import workspace_bytes
from shardmerge.errors import UserError, did_you_mean
from shardmerge.layout import group, shard_names, tensor_bytes
from shardmerge.lock import Lock, LockedSource
from shardmerge.recipe import Recipe
from shardmerge.references import Reference
from shardmerge.settings import Settings
from shardmerge.sources import slug
from shardmerge.spec import OutputTensor, ShardSpec, delta_name

#: (model, file) of a source
FileKey = tuple[str, str]
PathOf = Callable[[str, LockedSource, str], str]


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
    """

    output: str
    digest: str
    sources: tuple[str, ...]
    deltas: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    memory: int


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
        name: Of the stage, and of the folder below the results.
        digest: Of all that the package is made from; names the build's description.
        shards: In the order of their names.
        files: Small source files that the package copies or reads: name in the package to path.
    """

    name: str
    digest: str
    shards: tuple[ShardJob, ...]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Model:
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
        warnings: One sentence each.
    """

    builds: Mapping[str, Build]
    deltas: tuple[ShardJob, ...]
    fetches: Mapping[str, FetchJob]
    sources: Mapping[str, Model]
    unread: Mapping[str, int]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data; ``from_json`` inverts it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that ``to_json`` wrote."""
        return cls(
            builds={
                name: Build(b["name"], b["digest"], _jobs(b["shards"]), b["files"])
                for name, b in data["builds"].items()
            },
            deltas=_jobs(data["deltas"]),
            fetches={path: FetchJob(**job) for path, job in data["fetches"].items()},
            sources={
                name: Model(m["folder"], tuple(m["files"]), m["identity"], m["size"])
                for name, m in data["sources"].items()
            },
            unread=data["unread"],
            warnings=tuple(data["warnings"]),
        )


@dataclass
class Planned:
    """A plan and what its jobs read: specifications and descriptions of builds, by digest."""

    plan: Plan
    specs: dict[str, ShardSpec] = field(default_factory=dict)
    descriptions: dict[str, dict[str, Any]] = field(default_factory=dict)


def make_plan(recipes: list[tuple[Recipe, Lock]], settings: Settings, path_of: PathOf) -> Planned:
    """Return the plan of recipes with their locks.

    Args:
        recipes: Each with its lock.
        settings: The configuration.
        path_of: Gives the path at which jobs find a source's file.

    Raises:
        UserError: For every mistake that shows without reading weights.
    """
    return _Planner(recipes, settings, path_of).plan()


class _Planner:
    def __init__(
        self, recipes: list[tuple[Recipe, Lock]], settings: Settings, path_of: PathOf
    ) -> None:
        self.recipes = recipes
        self.settings = settings
        self.path_of = path_of
        self.planned = Planned(Plan({}, (), {}, {}, {}, ()))
        self.locked: dict[str, LockedSource] = {}
        self.identities: dict[FileKey, str] = {}
        self.fetches: dict[str, FetchJob] = {}
        self.read: set[FileKey] = set()

    def plan(self) -> Planned:
        for _, lock in self.recipes:
            for key, source in lock.sources.items():
                if self.locked.setdefault(key, source) != source:
                    raise UserError(
                        f"two recipes lock model {key!r} at different contents",
                        hint="Run `snakemake lock` to lock all recipes anew.",
                    )
                for name, file in source.files.items():
                    self.identities[key, name] = file.identity
        targets = self._targets()
        stored = self._stored({name: outputs for name, (_, _, outputs) in targets.items()})
        delta_jobs, delta_path = self._delta_jobs(stored)
        builds = {
            name: self._build(name, recipe, composer, outputs, delta_path)
            for name, (recipe, composer, outputs) in targets.items()
        }
        weights = {t.file for s in self.locked.values() for t in s.tensors.values()}
        unread = {
            self.path_of(key, source, name): file.size
            for key, source in self.locked.items()
            for name, file in source.files.items()
            if name in weights and (key, name) not in self.read
        }
        self.planned.plan = Plan(
            builds=builds,
            deltas=tuple(delta_jobs),
            fetches=self.fetches,
            sources={key: self._model(key) for key in self.locked},
            unread=unread,
            warnings=tuple(w for recipe, _ in self.recipes for w in recipe.warnings),
        )
        return self.planned

    def _targets(self) -> dict[str, tuple[Recipe, Composer, list[OutputTensor]]]:
        targets: dict[str, tuple[Recipe, Composer, list[OutputTensor]]] = {}
        wanted = self.settings["stages"]
        wanted = ["final"] if wanted == "final" else wanted
        known = {name for recipe, _ in self.recipes for name in recipe.stages}
        for name in wanted:
            if name != "final" and name not in known:
                raise UserError(
                    f"no recipe has a document named {name!r}",
                    "configuration: stages",
                    did_you_mean(name, known | {"final"}),
                )
        for recipe, lock in self.recipes:
            composer = Composer(recipe, lock, self.settings["numerics"], self.settings.delta_dtype)
            final = recipe.final if "final" in wanted else ()
            for name in recipe.stages:
                if name not in final and name not in wanted:
                    continue
                if other := targets.get(name):
                    raise UserError(
                        f"a document named {name!r} is also in {other[0].path}",
                        recipe.stages[name].where,
                        "Both would be built in one folder: rename one.",
                    )
                targets[name] = (recipe, composer, composer.outputs(name))
        return targets

    def _stored(self, targets: Mapping[str, list[OutputTensor]]) -> list[ex.Delta]:
        """Return the task vectors that are worth a file, in order of first use."""
        users: dict[ex.Delta, int] = {}
        for outputs in targets.values():
            for delta in dict.fromkeys(d for t in outputs for d in ex.deltas(t.expression)):
                users[delta] = users.get(delta, 0) + 1
        least = {"fuse": len(targets) + 1, "store": 1, "auto": 2}[self.settings["deltas"]]
        return [delta for delta, count in users.items() if count >= least]

    def _delta_jobs(self, stored: list[ex.Delta]) -> tuple[list[ShardJob], dict[ex.Delta, str]]:
        """Group task vectors by the fine-tuned model's files: each is then read by one job."""
        groups: dict[tuple[str, str, str], dict[str, list[ex.Delta]]] = {}
        for delta in stored:
            pair = (delta.finetuned.model, delta.base.model, delta.dtype)
            groups.setdefault(pair, {}).setdefault(delta.finetuned.file, []).append(delta)
        jobs, paths = [], {}
        for (finetuned, base, dtype), files in groups.items():
            folder = f"{slug(finetuned)}-minus-{slug(base)}-{DTYPES[dtype].name}"
            names = sorted({t.file for t in self.locked[finetuned].tensors.values()})
            shards = dict(zip(names, shard_names(len(names), "delta"), strict=True))
            for file, deltas in sorted(files.items()):
                deltas.sort(key=lambda d: self.locked[finetuned].tensors[d.finetuned.tensor].begin)
                tensors = tuple(
                    OutputTensor(delta_name(d, self.identities), d.dtype, d.shape, d)
                    for d in deltas
                )
                output = f"{self.settings['results']}/deltas/{folder}/{shards[file]}"
                jobs.append(self._job(output, tensors, {}))
                paths |= dict.fromkeys(deltas, output)
        return jobs, paths

    def _build(
        self,
        name: str,
        recipe: Recipe,
        composer: Composer,
        outputs: list[OutputTensor],
        delta_path: Mapping[ex.Delta, str],
    ) -> Build:
        source = composer.reference_source(name)
        layout = self.locked[source].tensors
        groups = group(outputs, layout, self.settings.max_shard_size)
        folder = f"{self.settings['results']}/{name}/model"
        jobs = tuple(
            self._job(f"{folder}/{file}", tuple(tensors), delta_path)
            for file, tensors in zip(shard_names(len(groups)), groups, strict=True)
        )
        return self._describe(name, recipe, source, composer, groups, jobs)

    def _job(
        self, output: str, tensors: tuple[OutputTensor, ...], delta_path: Mapping[ex.Delta, str]
    ) -> ShardJob:
        used = {(s.model, s.file): None for t in tensors for s in ex.sources(t.expression)}
        spec = ShardSpec(
            tensors=tensors,
            files={key: self.identities[key] for key in used},
            numerics=self.settings["numerics"],
            allow_nonfinite=self.settings["allow_nonfinite"],
        )
        name = spec.digest
        self.planned.specs[name] = spec
        files = spec.required_files(delta_path)
        self.read |= set(files)
        leaves = dict.fromkeys(leaf for t in tensors for leaf in _read_leaves(t, delta_path))
        return ShardJob(
            output=output,
            digest=name,
            sources=tuple(self._path(key) for key in files),
            deltas=tuple(
                dict.fromkeys(
                    delta_path[d]
                    for t in tensors
                    for d in ex.deltas(t.expression)
                    if d in delta_path
                )
            ),
            bytes_read=sum(ex.elements(leaf) * DTYPES[leaf.dtype].size for leaf in leaves),
            bytes_written=sum(map(tensor_bytes, tensors)),
            memory=workspace_bytes(spec),
        )

    def _path(self, key: FileKey) -> str:
        """Return a source file's path; one of the Hub gets a job that fetches it."""
        model, name = key
        source = self.locked[model]
        path = self.path_of(model, source, name)
        if source.kind == "hub":
            file = source.files[name]
            self.fetches[path] = FetchJob(
                path, source.repo, source.commit, name, file.size, file.sha256, file.git_oid
            )
        return path

    def _describe(
        self,
        name: str,
        recipe: Recipe,
        source: str,
        composer: Composer,
        groups: list[list[OutputTensor]],
        jobs: tuple[ShardJob, ...],
    ) -> Build:
        stage = recipe.stages[name]
        tokenizer = source
        if stage.tokenizer_source not in (None, "base"):
            tokenizer = composer.reference_source(stage.tokenizer_source)
        keys = {"config.json": (source, "config.json")}
        for key, wanted in ((source, MODEL_FILES), (tokenizer, TOKENIZER_FILES)):
            keys |= {file: (key, file) for file in self.locked[key].files if file in wanted}
        # What the result is made of reads best as sums, whichever way it is computed.
        numerics = self.settings["numerics"]
        algebra = Composer(recipe, composer.lock, "float32", composer.delta_dtype)

        def as_sum(t: OutputTensor) -> ex.Expression:
            if numerics == "float32":
                return t.expression
            return algebra.model(Reference(name)).expression(t.name)

        needed = _needed_stages(recipe, name)
        used = dict.fromkeys(
            r.model for s in needed for r in recipe.stages[s].references
            if r.model not in recipe.stages
        )  # fmt: skip
        description = {
            "name": name,
            "recipe": {"file": recipe.path, "text": recipe.text},
            "stages": [
                {"name": s, "method": recipe.stages[s].method, "text": recipe.stages[s].text}
                for s in needed
            ],
            "numerics": self.settings["numerics"],
            "dtype": DTYPES[stage.out_dtype or stage.dtype].name
            if stage.out_dtype or stage.dtype
            else None,
            "reference": source,
            "tokenizer": tokenizer,
            "files": {name: self.identities[key] for name, key in sorted(keys.items())},
            "sources": {key: _origin(self.locked[key]) for key in used},
            "shards": [
                {
                    "file": job.output.rsplit("/", 1)[1],
                    "digest": job.digest,
                    "tensors": {t.name: [t.dtype, list(t.shape)] for t in tensors},
                }
                for job, tensors in zip(jobs, groups, strict=True)
            ],
            "coefficients": {t.name: terms_of(as_sum(t)) for tensors in groups for t in tensors},
        }
        key = digest(description)
        self.planned.descriptions[key] = description
        return Build(name, key, jobs, {name: self._path(key) for name, key in keys.items()})

    def _model(self, key: str) -> Model:
        source = self.locked[key]
        paths = tuple(self._path((key, name)) for name in source.files)
        folder = paths[0].rsplit("/", 1)[0]
        identity = digest({name: file.identity for name, file in source.files.items()})
        size = sum(t.end - t.begin for t in source.tensors.values())
        return Model(folder, paths, identity, size)


#: Files that the package takes from the final stage's base model.
MODEL_FILES = ("generation_config.json",)
#: Files that make a tokenizer, taken from ``tokenizer_source``.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def terms_of(expression: ex.Expression) -> list[list[Any]]:
    """Return an expression's terms as [what, coefficient] for people: tables, cards, plots."""
    match expression:
        case ex.Linear(terms):
            return [[ex.label(e), c] for c, e in terms]
    return [[ex.label(expression), 1.0]]


def _read_leaves(tensor: OutputTensor, stored: Mapping[ex.Delta, str]) -> list[ex.Expression]:
    found: list[ex.Expression] = []

    def visit(expression: ex.Expression) -> None:
        if isinstance(expression, ex.Source) or expression in stored:
            found.append(expression)
            return
        for operand in ex.operands(expression):
            visit(operand)

    visit(tensor.expression)
    return found


def _needed_stages(recipe: Recipe, name: str) -> list[str]:
    needed: set[str] = {name}
    for stage in reversed(recipe.stages.values()):
        if stage.name in needed:
            needed |= {r.model for r in stage.references if r.model in recipe.stages}
    return [s for s in recipe.stages if s in needed]


def _origin(source: LockedSource) -> dict[str, Any]:
    files = {name: file.identity for name, file in source.files.items()}
    origin = {"kind": source.kind, "repo": source.repo, "revision": source.revision}
    origin |= {"commit": source.commit}
    return {k: v for k, v in origin.items() if v is not None} | {"files": files}


def _jobs(rows: list[Mapping[str, Any]]) -> tuple[ShardJob, ...]:
    return tuple(
        ShardJob(**{**row, "sources": tuple(row["sources"]), "deltas": tuple(row["deltas"])})
        for row in rows
    )
