"""What a build is made from and how, as data for people and for the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardmerge import expression as ex
from shardmerge.compose import Composer
from shardmerge.dtypes import DTYPES
from shardmerge.lock import LockedSource
from shardmerge.output_config import config_changes
from shardmerge.plan import ShardJob
from shardmerge.spec import OutputTensor
from shardmerge.terms import terms_of

#: (model, file) of a source
FileKey = tuple[str, str]
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


def package_files(composer: Composer, stage: str) -> dict[str, FileKey]:
    """Return the small source files that a build's package copies or reads, by their name there."""
    source, tokenizer = composer.reference_source(stage), tokenizer_model(composer, stage)
    files = {"config.json": (source, "config.json")}
    for key, wanted in ((source, MODEL_FILES), (tokenizer, TOKENIZER_FILES)):
        files |= {name: (key, name) for name in composer.lock.sources[key].files if name in wanted}
    return files


def tokenizer_model(composer: Composer, stage: str) -> str:
    """Return the source whose tokenizer a stage's model gets."""
    return composer.tokenizers.source_of(stage)


def describe(
    composer: Composer,
    name: str,
    files: Mapping[str, str],
    groups: list[list[OutputTensor]],
    jobs: tuple[ShardJob, ...],
    sums: Mapping[str, ex.Expression],
) -> dict[str, Any]:
    """Return the description of a build.

    Args:
        composer: Of the recipe.
        name: The stage that is built.
        files: Small files of the package by name, with the identity of their content.
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
    return {
        "name": name,
        "recipe": {"file": recipe.path, "text": recipe.text},
        "stages": [
            {"name": s, "method": recipe.stages[s].method, "text": recipe.stages[s].text}
            for s in needed
        ],
        "numerics": composer.numerics,
        "dtype": DTYPES[dtype].name if dtype else None,
        "config": config_changes(composer, name),
        "reference": composer.reference_source(name),
        "tokenizer": tokenizer_model(composer, name),
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


def _origin(source: LockedSource) -> dict[str, Any]:
    files = {name: file.identity for name, file in source.files.items()}
    origin = {"kind": source.kind, "repo": source.repo, "revision": source.revision}
    origin |= {"commit": source.commit}
    origin |= {"role": None if source.role == "model" else source.role}
    return {k: v for k, v in origin.items() if v is not None} | {"files": files}
