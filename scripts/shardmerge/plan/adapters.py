"""From a document that asks for a LoRA adapter to its jobs: updates by shards, then factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shardmerge.algebra.factorization import FactorModule, FactorSpec
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.compose.adapter_parts import AdapterParts, adapter_parts
from shardmerge.compose.composer import Composer
from shardmerge.plan.adapter_description import AdapterDescription
from shardmerge.plan.describe import described_sources, stage_texts
from shardmerge.plan.description import DescribedMade, RecipeFile
from shardmerge.plan.paths import Paths
from shardmerge.plan.plan import Adapter, FactorJob, Planned, ShardJob
from shardmerge.plan.shards import group, shard_names
from shardmerge.recipe.stage import Stage

#: Makes the job of a shard: its path and its tensors.
MakeJob = Callable[[str, tuple[OutputTensor, ...]], ShardJob]
#: What torch and the libraries below it take, and what a decomposition holds of a matrix.
_FIXED_BYTES, _COPIES = 400 << 20, 7


def plan_adapter(
    composer: Composer,
    name: str,
    *,
    paths: Paths,
    planned: Planned,
    make_job: MakeJob,
    made_for: Callable[[Sequence[ShardJob]], tuple[DescribedMade, ...]],
    max_shard_size: int | None,
) -> Adapter:
    """Return the jobs of an adapter; what they read goes to the plan's specifications.

    Args:
        composer: Of the recipe, in numerics that fold.
        name: The stage.
        paths: Of results.
        planned: Gets the specifications and the adapter's description.
        make_job: Makes the job of a shard of updates.
        made_for: Returns the sources that jobs make for such shards.
        max_shard_size: Bytes of a shard, or None to follow the base's files.

    Raises:
        UserError: For what does not fit, see ``adapter_parts``.
    """
    stage, parts = composer.recipe.stages[name], adapter_parts(composer, name)
    updates, factors = [], []
    groups = _groups(composer, stage, parts, max_shard_size)
    files = zip(
        *(shard_names(len(groups), stem) for stem in ("update", "factors")), groups, strict=True
    )
    for update, output, tensors in files:
        job = make_job(paths.update(name, update), tuple(tensors))
        spec = _spec(stage, parts, tensors, job.digest)
        planned.specs[spec.digest] = spec
        updates.append(job)
        factors.append(_factor_job(paths.factors(name, output), spec, job, tensors))
    digests = [job.digest for job in factors]
    description = _describe(composer, stage, parts, digests, made_for(updates))
    planned.descriptions[description.digest] = description
    return Adapter(
        name,
        description.digest,
        tuple(updates),
        tuple(factors),
        description.model,
        description.base,
    )


def _groups(
    composer: Composer, stage: Stage, parts: AdapterParts, max_shard_size: int | None
) -> list[list[OutputTensor]]:
    """Return the tensors of every shard of updates; the factors of one module are in one."""
    base = composer.model(stage.base_model)
    rows = [(module.tensor, tensors) for module, tensors in parts.modules]
    rows += [(tensor.name, (tensor,)) for _, tensor in parts.saved]
    leads = [OutputTensor(name, *_size(tensors), tensors[0].expression) for name, tensors in rows]
    members = dict(rows)
    places = {name: base.place(name) for name, _ in rows}
    usual = max(tensor_bytes(t.dtype, t.shape) for t in leads)
    shards = group(leads, places, max_shard_size, usual)
    return [[t for lead in shard for t in members[lead.name]] for shard in shards]


def _size(tensors: Sequence[OutputTensor]) -> tuple[str, tuple[int, ...]]:
    return "U8", (sum(tensor_bytes(t.dtype, t.shape) for t in tensors),)


def _spec(
    stage: Stage, parts: AdapterParts, tensors: Sequence[OutputTensor], update: str
) -> FactorSpec:
    here = {t.name for t in tensors}
    asked = stage.extraction
    return FactorSpec(
        update=update,
        modules=tuple(module for module, own in parts.modules if own[0].name in here),
        saved=tuple((tensor.name, name) for name, tensor in parts.saved if tensor.name in here),
        decomposition=asked.decomposition,
        rank=asked.rank,
        energy=asked.energy,
        cut=asked.cut,
        alpha=asked.alpha,
        seed=asked.seed,
        dtype=asked.dtype,
    )


def _factor_job(
    output: str, spec: FactorSpec, update: ShardJob, tensors: Sequence[OutputTensor]
) -> FactorJob:
    by_name = {t.name: t for t in tensors}
    largest = max((_matrix_bytes(m, by_name) for m in spec.modules), default=0)
    saved = sum(tensor_bytes(by_name[n].dtype, by_name[n].shape) for n, _ in spec.saved)
    written = sum(_factor_bytes(m, by_name, spec) for m in spec.modules) + saved
    memory = _FIXED_BYTES + _COPIES * largest
    return FactorJob(output, spec.digest, update.output, update.bytes_written, written, memory)


def _matrix_bytes(module: FactorModule, tensors: Mapping[str, OutputTensor]) -> int:
    names = [module.tensor]
    if module.products:
        names = [n for i in range(module.products) for n in module.factor_names(i)]
    return 2 * sum(tensor_bytes("F32", tensors[name].shape) for name in names)


def _factor_bytes(
    module: FactorModule, tensors: Mapping[str, OutputTensor], spec: FactorSpec
) -> int:
    if module.products and spec.rank is None:
        return _matrix_bytes(module, tensors) // 2
    if module.products:
        b, a = (tensors[name].shape for name in module.factor_names(0))
        shape: tuple[int, ...] = (b[0], a[1])
    else:
        shape = tensors[module.tensor].shape
    *count, rows, columns = shape
    rank = min(spec.rank, rows, columns)
    return tensor_bytes("F32", (*count, rank, rows + columns))


def _describe(
    composer: Composer,
    stage: Stage,
    parts: AdapterParts,
    factors: Sequence[str],
    made: tuple[DescribedMade, ...],
) -> AdapterDescription:
    asked, recipe = stage.extraction, composer.recipe
    return AdapterDescription(
        name=stage.name,
        recipe=RecipeFile(file=recipe.path, text=recipe.text),
        stages=stage_texts(recipe, stage.name),
        model=str(stage.inputs[0].model),
        base=str(stage.base_model),
        sources=described_sources(composer, stage.name),
        decomposition=asked.decomposition,
        rank=asked.rank,
        energy=asked.energy,
        cut=asked.cut,
        alpha=asked.alpha,
        seed=asked.seed,
        dtype=asked.dtype,
        align=asked.align,
        turned=parts.turned,
        factors=tuple(factors),
        modules=parts.all,
        saved=asked.save,
        left=tuple(parts.left),
        equal=tuple(parts.equal),
        made=made,
    )
