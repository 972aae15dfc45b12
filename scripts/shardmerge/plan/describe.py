"""What a build is made from and how, as data for people and for the package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shardmerge.algebra import expression as ex
from shardmerge.algebra.coefficients import decoded_of, terms_of
from shardmerge.algebra.patterns import alike
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.weightfolders import component_of, folder_of, own_name
from shardmerge.compose.composer import Composer
from shardmerge.compose.made_sources import FileKey, MadeSource
from shardmerge.compose.output_config import config_changes, config_removed, config_whole
from shardmerge.compose.tokenizer_files import TokenizerFiles, config_values, generation_source
from shardmerge.plan.description import (
    BuildDescription,
    DescribedMade,
    DescribedShard,
    DescribedSource,
    RecipeFile,
    StageText,
    TokenizerContent,
)
from shardmerge.plan.plan import ShardJob
from shardmerge.recipe.recipe import Recipe
from shardmerge.recipe.stage import Stage
from shardmerge.sources.checkpoint_files import side_files
from shardmerge.sources.lock import Lock, LockedSource

#: Files that the package takes from the final stage's base model, where its tokenizer is too.
MODEL_FILES = ("generation_config.json",)


def copied_files(composer: Composer, stage: str) -> dict[str, FileKey]:
    """Return the small source files of a build's package that are no tokenizer's, by name there."""
    base = composer.reference_source(stage)
    if composer.recipe.stages[stage].tensors:
        source = composer.lock.sources[base]
        weights = {tensor.file for tensor in source.tensors.values()}
        return {name: (base, name) for name in source.files if name not in weights}
    files = {"config.json": (base, "config.json")}
    key = generation_source(composer, stage)
    held = composer.lock.sources[key].files
    files |= {name: (key, name) for name in MODEL_FILES if name in held}
    if composer.is_text_alone(stage):
        return files
    return files | {name: (base, name) for name in side_files(composer.lock.sources[base].files)}


def describe(
    composer: Composer,
    name: str,
    files: Mapping[str, str],
    tokenizer: TokenizerContent,
    shards: Mapping[str, Sequence[OutputTensor]],
    jobs: tuple[ShardJob, ...],
    sums: Mapping[str, ex.Expression],
    made: tuple[DescribedMade, ...],
    *,
    allow_nonfinite: bool,
) -> BuildDescription:
    """Return the description of a build.

    Args:
        composer: Of the recipe.
        name: The stage that is built.
        files: Small files of the package by name, with the identity of their content.
        tokenizer: What the tokenizer's files hold.
        shards: Tensors of every shard, by its name relative to the model's folder.
        jobs: The shards' jobs, in the same order.
        sums: What each tensor is (``Composer.sums``).
        made: Sources that jobs made for it.
        allow_nonfinite: Whether shards may hold what no source has: verified anew if it changes.
    """
    recipe = composer.recipe
    stage = recipe.stages[name]
    dtype = stage.out_dtype or stage.dtype or _common_dtype(shards)
    checkpoint = stage.tensors is not None
    return BuildDescription(
        name=name,
        recipe=RecipeFile(file=recipe.path, text=recipe.text),
        stages=stage_texts(recipe, name),
        numerics=composer.numerics,
        dtype=DTYPES[dtype].name if dtype else None,
        config={} if checkpoint else config_changes(composer, name) | config_values(composer, name),
        reference=composer.reference_source(name),
        tokenizer=tokenizer.source,
        tokens=tokenizer,
        files={name: files[name] for name in sorted(files)},
        sources=described_sources(composer, name),
        shards=tuple(
            _shard(file, job, tensors)
            for job, (file, tensors) in zip(jobs, shards.items(), strict=True)
        ),
        coefficients={
            t.name: alike(sums[t.name], terms_of) for own in shards.values() for t in own
        },
        config_removed=() if checkpoint else tuple(config_removed(composer, name)),
        config_whole=None if checkpoint else config_whole(composer, name),
        decoded=decoded_of(sums.values()),
        seeds=_seeds(sums.values()),
        allow_nonfinite=allow_nonfinite,
        checkpoint=checkpoint,
        made=made,
    )


def stage_texts(recipe: Recipe, name: str) -> tuple[StageText, ...]:
    """Return the documents that a stage needs, itself the last."""
    return tuple(_stage_text(recipe.stages[stage]) for stage in recipe.needed(name))


def described_sources(composer: Composer, name: str) -> dict[str, DescribedSource]:
    """Return what a stage is made of, models first, by reference."""
    recipe, lock = composer.recipe, composer.lock
    references = [r for s in recipe.needed(name) for r in recipe.stages[s].references]
    used = dict.fromkeys(r.model for r in references if r.model not in recipe.stages)
    used |= dict.fromkeys(r.lora for r in references if r.lora)
    return {key: _described(lock.sources[key]) for key in used}


def described_made(one: MadeSource, lock: Lock) -> DescribedMade:
    """Return a source that a job makes, with what it is made from.

    Args:
        one: The source.
        lock: Of its recipe.
    """
    keys = [key for row in one.inputs for key in row]
    text = (one.text, str(lock.texts[one.text].sha256)) if one.text else None
    return DescribedMade(
        kind=one.kind,
        digest=one.digest,
        files=tuple((*key, lock.sources[key[0]].files[key[1]].identity) for key in keys),
        text=text,
    )


def tokenizer_content(made: TokenizerFiles, identities: Mapping[FileKey, str]) -> TokenizerContent:
    """Return what is told of a tokenizer's files.

    Args:
        made: The files.
        identities: Of the content of sources' files.
    """
    read = tuple((*key, identities[key]) for key in made.read)
    return TokenizerContent(**made.description, made=made.made, read=read)


def _common_dtype(shards: Mapping[str, Sequence[OutputTensor]]) -> str | None:
    """Return the code of the type that all tensors of floats are saved in, None if they differ."""
    main = [t for file, own in shards.items() if not folder_of(file) for t in own]
    codes = {t.dtype for t in main if DTYPES[t.dtype].floating}
    return codes.pop() if len(codes) == 1 else None


def _stage_text(stage: Stage) -> StageText:
    return StageText(name=stage.name, method=stage.method, text=stage.text)


def _shard(file: str, job: ShardJob, tensors: Iterable[OutputTensor]) -> DescribedShard:
    folder = component_of(file)
    kinds: dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]] = {}
    found = {}
    for tensor in tensors:
        kind = tensor.dtype, tuple(tensor.shape)
        found[own_name(tensor.name, folder)] = kinds.setdefault(kind, kind)
    return DescribedShard(file=file, digest=job.digest, tensors=found)


def _seeds(expressions: Iterable[ex.Expression]) -> dict[str, tuple[int, ...]] | None:
    """Return the seeds of each stage that chooses at random, None if none does."""
    found: dict[str, set[int]] = {}
    for stage, seed in {pair for one in expressions for pair in alike(one, _drawn)}:
        found.setdefault(stage, set()).add(seed)
    return {stage: tuple(sorted(found[stage])) for stage in sorted(found)} or None


def _drawn(expression: ex.Expression) -> frozenset[tuple[str, int]]:
    """Return stage and seed of the calls that choose at random."""
    calls = (node for node in ex.walk(expression) if isinstance(node, ex.Call))
    values = (dict(call.parameters) for call in calls)
    return frozenset((one["stage"], one["seed"]) for one in values if "seed" in one)


def _described(source: LockedSource) -> DescribedSource:
    return DescribedSource(
        kind=source.kind,
        **source.origin._asdict(),
        role=None if source.role == "model" else source.role,
        files={name: file.identity for name, file in source.files.items()},
    )
