"""From recipes and locks to the plan.

A pure function of recipes, locks and configuration. ``planning.load_plan`` keeps it on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import itemgetter

from shardmerge.algebra import expression as ex
from shardmerge.algebra.interference import worth_showing
from shardmerge.algebra.leaves import bytes_of_leaves, bytes_read
from shardmerge.algebra.patterns import alike
from shardmerge.algebra.spec import OutputTensor, ShardSpec, delta_name, files_of
from shardmerge.base.digest import digest
from shardmerge.base.dtypes import DTYPES, bytes_of
from shardmerge.base.errors import UserError
from shardmerge.base.findings import unsilenced
from shardmerge.base.identities import FULL_HASH_BYTES
from shardmerge.base.numerics import FLOAT32, Numerics
from shardmerge.base.weightfolders import in_folder
from shardmerge.check.memory import check_bytes, check_needs_torch
from shardmerge.compose import norms
from shardmerge.compose.composer import Composer
from shardmerge.compose.made_sources import FileKey, MadeSource
from shardmerge.compose.tokenizer_files import tokenizer_files
from shardmerge.engine.memory import ahead_bytes, workspace_bytes
from shardmerge.engine.tasks import needs_torch, one_task_of_each, uses_card
from shardmerge.plan.adapters import plan_adapter
from shardmerge.plan.describe import (
    copied_files,
    describe,
    described_made,
    tokenizer_content,
)
from shardmerge.plan.description import DescribedMade
from shardmerge.plan.made_jobs import MadeJob
from shardmerge.plan.making import MADE_KINDS, made_job
from shardmerge.plan.order import with_schedule
from shardmerge.plan.paths import Paths
from shardmerge.plan.plan import (
    Build,
    FetchJob,
    Plan,
    Planned,
    PlannedSource,
    ShardJob,
)
from shardmerge.plan.reading import worth_storing
from shardmerge.plan.recipe_checks import check_build, check_norm_merge
from shardmerge.plan.shards import as_stored, shard_names, shards_of
from shardmerge.plan.trialroom import TrialWish
from shardmerge.recipe.naming import slug
from shardmerge.recipe.recipe import Recipe, chosen
from shardmerge.recipe.references import Reference
from shardmerge.recipe.settings import Settings
from shardmerge.sources.lock import Lock, LockedSource

#: Kinds of tensor whose difference may be stored: others follow one recipe.
_STORABLE = ex.Source | ex.Decoded | ex.Arranged
PathOf = Callable[[str, LockedSource, str], str]
#: Of a model: its composer, its document, its tensors.
_Target = tuple[Composer, str, list[OutputTensor]]


def make_plan(
    recipes: list[tuple[Recipe, Lock]],
    settings: Settings,
    path_of: PathOf,
    wish: TrialWish | None = None,
) -> Planned:
    """Return the plan of recipes with their locks.

    Args:
        recipes: Each with its lock.
        settings: The configuration.
        path_of: Gives the path at which jobs find a source's file.
        wish: What sweeps ask for, where there are any.

    Raises:
        UserError: For every mistake that shows without reading weights.
    """
    planned = _Planner(recipes, settings, path_of).plan()
    planned.plan = with_schedule(planned.plan, settings, wish)
    return planned


class _Planner:
    def __init__(
        self, recipes: list[tuple[Recipe, Lock]], settings: Settings, path_of: PathOf
    ) -> None:
        self.recipes = recipes
        self.settings = settings
        self.path_of = path_of
        self.paths = Paths(settings["results"])
        self.planned = Planned(Plan({}, (), {}, {}, {}, ()))
        self.locked: dict[str, LockedSource] = {}
        self.identities: dict[FileKey, str] = {}
        self.fetches: dict[str, FetchJob] = {}
        self.read: set[FileKey] = set()
        self.made: dict[FileKey, tuple[MadeSource, Lock]] = {}
        self.findings = [f for recipe, _ in recipes for f in recipe.warnings]

    def plan(self) -> Planned:
        for lock in {id(lock): lock for _, lock in self.recipes}.values():
            for key, source in lock.sources.items():
                if not self.locked.setdefault(key, source).has_contents_of(source):
                    raise UserError(
                        f"two recipes lock model {key!r} at different contents",
                        hint="Run `snakemake lock` to lock all recipes anew.",
                    )
                for name, file in source.files.items():
                    self.identities[key, name] = file.identity
        targets = self._targets()
        stored = self._stored({name: outputs for name, (_, _, outputs) in targets.items()})
        delta_jobs, delta_path = self._delta_jobs(stored)
        builds = {name: self._build(name, *target, delta_path) for name, target in targets.items()}
        extracting = self._adapters()
        adapters = {
            name: plan_adapter(
                composer,
                name,
                paths=self.paths,
                planned=self.planned,
                make_job=partial(self._update_job, composer),
                made_for=self._made_for,
                max_shard_size=self.settings.max_shard_size,
            )
            for name, composer in extracting.items()
        }
        made = self._made_jobs()
        weights = {t.file for s in self.locked.values() for t in s.tensors.values()}
        unread = {
            self.path_of(key, source, name): file.size
            for key, source in self.locked.items()
            for name, file in source.files.items()
            if name in weights and (key, name) not in self.read
        }
        plan = Plan(
            builds=builds,
            deltas=tuple(delta_jobs),
            fetches=self.fetches,
            sources={k: self._model(k) for k, s in self.locked.items() if s.role == "model"},
            unread=unread,
            hashes=self._large_files(),
            made=made,
            warnings=unsilenced(self.findings, self.settings["silence"]),
            adapters=adapters,
        )
        for composer in [*(composer for composer, _, _ in targets.values()), *extracting.values()]:
            composer.forget()
        self.planned.plan = plan
        return self.planned

    def _large_files(self) -> dict[str, str]:
        """Return the files of local models that jobs read and the head does not hash itself."""
        found = {}
        for model, name in sorted(self.read - self.made.keys()):
            source = self.locked[model]
            if not source.store.remote and source.files[name].size > FULL_HASH_BYTES:
                found[self.path_of(model, source, name)] = source.files[name].identity
        return found

    def _targets(self) -> dict[str, _Target]:
        """Return each model's composer, its document and its tensors, by the name of its folder."""
        targets: dict[str, _Target] = {}
        recipes = [recipe for recipe, _ in self.recipes]
        wanted = chosen(recipes, self.settings["stages"])
        norms.check_names(recipes, self.settings["norm_merge"])
        for recipe, lock in self.recipes:
            self.findings += check_norm_merge(recipe, self.settings["norm_merge"])
            composer = Composer(
                recipe,
                lock,
                self.settings.numerics,
                self.settings.delta_dtype,
                norms.geometric_stages(recipe, self.settings["norm_merge"]),
            )
            for name, of in wanted.items():
                if of is recipe:
                    stage = recipe.final[0] if recipe.build else name
                    if not recipe.stages[stage].extraction:
                        targets[name] = (composer, stage, composer.outputs(stage))
            self._note_made(composer)
        return targets

    def _note_made(self, composer: Composer) -> None:
        """Note the sources that jobs make for a recipe."""
        self.made |= {key: (one, composer.lock) for key, one in composer.made.items()}
        self.identities |= {key: one.identity for key, one in composer.made.items()}

    def _adapters(self) -> dict[str, Composer]:
        """Return the documents that make adapters; sums are what these are made of."""
        wanted = chosen([recipe for recipe, _ in self.recipes], self.settings["stages"])
        return {
            name: Composer(
                recipe,
                lock,
                FLOAT32,
                self.settings.delta_dtype,
                norms.geometric_stages(recipe, self.settings["norm_merge"]),
            )
            for recipe, lock in self.recipes
            for name, of in wanted.items()
            if of is recipe and _makes_adapter(recipe, name)
        }

    def _stored(self, targets: Mapping[str, list[OutputTensor]]) -> list[ex.Delta]:
        """Return the task vectors that are worth a file, in order of first use."""
        how = self.settings["deltas"]
        if how == "fuse" or (how != "store" and len(targets) < 2):
            return []  # a single model has no other to share with
        users: dict[ex.Delta, int] = {}
        for outputs in targets.values():
            for delta in dict.fromkeys(d for t in outputs for d in ex.deltas(t.expression)):
                # one of rows follows a recipe's tokenizer, so that few builds would share it
                if all(isinstance(e, _STORABLE) for e in ex.operands(delta)):
                    users[delta] = users.get(delta, 0) + 1
        if how == "store":
            return list(users)
        shared = [delta for delta, count in users.items() if count > 1]
        return worth_storing(shared, [t for outputs in targets.values() for t in outputs])

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
                table, of = self.locked[finetuned].tensors, self.locked[finetuned].folder_of(file)
                deltas.sort(key=lambda d: table[in_folder(of, d.finetuned.tensor)].begin)
                tensors = tuple(
                    OutputTensor(delta_name(d, self.identities), d.dtype, d.shape, d)
                    for d in deltas
                )
                output = self.paths.delta(folder, shards[file])
                jobs.append(self._job(output, tensors, {}))
                paths |= dict.fromkeys(deltas, output)
        return jobs, paths

    def _build(
        self,
        name: str,
        composer: Composer,
        stage: str,
        outputs: list[OutputTensor],
        delta_path: Mapping[ex.Delta, str],
    ) -> Build:
        model = composer.model(Reference(stage))
        places = {t.name: model.place(t.name) for t in outputs}
        usual = _largest_file(self.locked[composer.reference_source(stage)])
        checkpoint = composer.recipe.stages[stage].tensors is not None
        shards = shards_of(
            *(outputs, places, self.settings.max_shard_size, usual),
            {t.name: model.folder(t.name) for t in outputs},
            checkpoint=checkpoint,
        )
        jobs = tuple(
            self._job(
                self.paths.model_file(name, file),
                as_stored(tensors, file),
                delta_path,
            )
            for file, tensors in shards.items()
        )
        tokenizer = tokenizer_files(composer, stage)
        files = copied_files(composer, stage) | tokenizer.copied
        identities = {file: self.identities[key] for file, key in files.items()}
        tokens = tokenizer_content(tokenizer, self.identities)
        sums = composer.sums(stage, outputs)
        self.findings += check_build(composer, stage, outputs, sums)
        description = describe(
            *(composer, stage, identities, tokens, shards, jobs, sums, self._made_for(jobs)),
            allow_nonfinite=self.settings["allow_nonfinite"],
        )
        key = description.digest
        self.planned.descriptions[key] = description
        paths = {file: self._path(key) for file, key in files.items()}
        made = {file: self.paths.tokenizer_file(name, file) for file in tokenizer.made}
        return Build(
            name=name,
            digest=key,
            shards=jobs,
            files=paths | made,
            tokenizer=tuple(self._path(key) for key in tokenizer.read),
            statistics=worth_showing(t.expression for t in outputs),
            varied=description.varied,
            trial=composer.recipe.build is not None,
            checkpoint=checkpoint,
        )

    def _job(
        self,
        output: str,
        tensors: tuple[OutputTensor, ...],
        delta_path: Mapping[ex.Delta, str],
        numerics: Numerics | None = None,
    ) -> ShardJob:
        sources = [source for t in tensors for source in ex.sources(t.expression)]
        used = dict.fromkeys(map(itemgetter(0, 1), sources))
        spec = ShardSpec(
            tensors=tensors,
            files={key: self.identities[key] for key in used},
            numerics=numerics or self.settings.numerics,
            allow_nonfinite=self.settings["allow_nonfinite"],
        )
        name = spec.digest
        self.planned.specs[name] = spec
        files, deltas, size = tuple(used), (), 0
        if delta_path or len(set(sources)) < len(sources):
            leaves = spec.leaves(delta_path)
            files, size = files_of(leaves), sum(map(bytes_read, leaves))
            found = (d for t in tensors for d in ex.deltas(t.expression) if d in delta_path)
            deltas = tuple(dict.fromkeys(delta_path[delta] for delta in found))
        else:  # no tensor is read for two
            size = sum([alike(t.expression, bytes_of_leaves) for t in tensors])
        self.read |= set(files)
        # what differs in names takes the same memory
        tasks, device = one_task_of_each(spec, delta_path), self.settings["device"]
        return ShardJob(
            output=output,
            digest=name,
            sources=tuple(self._path(key) for key in files),
            deltas=deltas,
            bytes_read=size,
            bytes_written=sum([bytes_of(t.dtype, t.shape) for t in tensors]),
            memory=workspace_bytes(tasks, device),
            ahead=ahead_bytes(tasks, device),
            check_memory=check_bytes(tasks),
            torch=needs_torch(tasks) or check_needs_torch(tasks),
            card=uses_card(tasks, device),
        )

    def _update_job(
        self, composer: Composer, output: str, tensors: tuple[OutputTensor, ...]
    ) -> ShardJob:
        """Return the job that writes what an adapter's model has beyond its base."""
        self._note_made(composer)
        return self._job(output, tensors, {}, FLOAT32)

    def _path(self, key: FileKey) -> str:
        """Return a source file's path; one that is not here gets a job that fetches it."""
        if key in self.made:
            one, _ = self.made[key]
            return self.paths.made(MADE_KINDS[one.kind].folder, one.file)
        model, name = key
        source = self.locked[model]
        path = self.path_of(model, source, name)
        if source.store.remote:
            file = source.files[name]
            self.fetches[path] = FetchJob(
                path, source.repo, source.commit, name, file.size, file.sha256, file.git_oid
            )
        return path

    def _made_jobs(self) -> dict[str, MadeJob]:
        """Return the jobs that make sources, by the digests of what they make.

        Those that no shard reads are left out: what is planned as sums may not be computed so.
        """
        found = {}
        for key, (one, lock) in self.made.items():
            if key in self.read:
                self.planned.specs[one.digest] = one.spec
                self.read.update(*one.inputs)
                found[one.digest] = made_job(one, self._path(key), lock, self._path)
        return found

    def _made_for(self, jobs: Iterable[ShardJob]) -> tuple[DescribedMade, ...]:
        """Return the sources that jobs make for shards, in order of first use."""
        keys = (key for job in jobs for key in self.planned.specs[job.digest].files)
        return tuple(
            described_made(*self.made[key]) for key in dict.fromkeys(keys) if key in self.made
        )

    def _model(self, key: str) -> PlannedSource:
        source = self.locked[key]
        paths = tuple(self._path((key, name)) for name in source.files)
        folder = paths[0].rsplit("/", 1)[0]
        identity = digest({name: file.identity for name, file in source.files.items()})
        size = sum(t.end - t.begin for t in source.tensors.values())
        return PlannedSource(folder, paths, identity, size)


def _makes_adapter(recipe: Recipe, name: str) -> bool:
    """Whether what is made under that name is an adapter.

    Raises:
        UserError: If it would be one of a sweep, whose trials are models.
    """
    stage = recipe.stages[recipe.final[0] if recipe.build else name]
    if stage.extraction and recipe.build:
        raise UserError(
            "the trials of a sweep are models, and its last document makes an adapter",
            stage.where,
            "Leave `extract_lora` out of the sweep, and extract from the best trial.",
        )
    return stage.extraction is not None


def _largest_file(source: LockedSource) -> int:
    sizes: dict[str, int] = {}
    for tensor in source.tensors.values():
        sizes[tensor.file] = sizes.get(tensor.file, 0) + tensor.end - tensor.begin
    return max(sizes.values(), default=0)
