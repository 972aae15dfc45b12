"""What a build is made from and how, as data for people and for the package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra.coefficients import decoded_of, terms_of
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.dtypes import DTYPES
from shardmerge.compose.composer import Composer
from shardmerge.compose.output_config import config_changes, config_removed
from shardmerge.compose.tokenizer_files import config_values, generation_source
from shardmerge.plan.plan import ShardJob
from shardmerge.sources.lock import LockedSource

#: (model, file) of a source
FileKey = tuple[str, str]
#: Files that the package takes from the final stage's base model, where its tokenizer is too.
MODEL_FILES = ("generation_config.json",)


def model_files(composer: Composer, stage: str) -> dict[str, FileKey]:
    """Return the small source files of a build's package that are no tokenizer's, by name there."""
    files = {"config.json": (composer.reference_source(stage), "config.json")}
    key = generation_source(composer, stage)
    held = composer.lock.sources[key].files
    return files | {name: (key, name) for name in MODEL_FILES if name in held}


def describe(
    composer: Composer,
    name: str,
    files: Mapping[str, str],
    tokenizer: Mapping[str, Any],
    groups: list[list[OutputTensor]],
    jobs: tuple[ShardJob, ...],
    sums: Mapping[str, ex.Expression],
) -> dict[str, Any]:
    """Return the description of a build.

    Args:
        composer: Of the recipe.
        name: The stage that is built.
        files: Small files of the package by name, with the identity of their content.
        tokenizer: What the tokenizer's files hold: ``tokenizer.packing.TokenizerFiles``.
        groups: Tensors of every shard.
        jobs: The shards' jobs, in the same order.
        sums: What each tensor is (``Composer.sums``).
    """
    recipe, lock = composer.recipe, composer.lock
    stage = recipe.stages[name]
    dtype = stage.out_dtype or stage.dtype
    needed = recipe.needed(name)
    references = [r for s in needed for r in recipe.stages[s].references]
    used = dict.fromkeys(r.model for r in references if r.model not in recipe.stages)
    used |= dict.fromkeys(r.lora for r in references if r.lora)
    odd = {"config_removed": config_removed(composer, name), "decoded": decoded_of(sums.values())}
    description = {
        "name": name,
        "recipe": {"file": recipe.path, "text": recipe.text},
        "stages": [
            {"name": s, "method": recipe.stages[s].method, "text": recipe.stages[s].text}
            for s in needed
        ],
        "numerics": composer.numerics,
        "dtype": DTYPES[dtype].name if dtype else None,
        "config": config_changes(composer, name) | config_values(composer, name),
        "reference": composer.reference_source(name),
        "tokenizer": tokenizer["source"],
        "tokens": tokenizer,
        "files": {name: files[name] for name in sorted(files)},
        "sources": {key: _origin(lock.sources[key]) for key in used},
        "shards": [
            {
                "file": job.output.rsplit("/", 1)[1],
                "digest": job.digest,
                "tensors": {t.name: [t.dtype, list(t.shape)] for t in tensors},
            }
            for job, tensors in zip(jobs, groups, strict=True)
        ],
        "coefficients": {t.name: terms_of(sums[t.name]) for tensors in groups for t in tensors},
    }
    return description | {k: v for k, v in odd.items() if v} | _seeds(sums.values())


def _seeds(expressions: Iterable[ex.Expression]) -> dict[str, Any]:
    """Return the seeds of each stage that chooses at random, nothing if none does."""
    found: dict[str, set[int]] = {}
    for expression in expressions:
        if isinstance(expression, ex.Source):
            continue
        for node in ex.walk(expression):
            values = dict(node.parameters) if isinstance(node, ex.Call) else {}
            if "seed" in values:
                found.setdefault(values["stage"], set()).add(values["seed"])
    return {"seeds": {stage: sorted(found[stage]) for stage in sorted(found)}} if found else {}


def _origin(source: LockedSource) -> dict[str, Any]:
    files = {name: file.identity for name, file in source.files.items()}
    origin = {"kind": source.kind, "repo": source.repo, "revision": source.revision}
    origin |= {"commit": source.commit}
    origin |= {"role": None if source.role == "model" else source.role}
    return {k: v for k, v in origin.items() if v is not None} | {"files": files}
