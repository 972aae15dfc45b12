"""What a model was made from and with: the same bytes wherever and whenever it is written."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from shardmerge import __version__
from shardmerge.base import forms
from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.package.index import CHECKPOINT, name_within
from shardmerge.package.known import with_states
from shardmerge.plan.description import (
    BuildDescription,
    DescribedMade,
    DescribedShard,
    RecipeFile,
    StageText,
)
from shardmerge.plan.records import MergeRecord, VerifyRecord
from shardmerge.recipe.naming import public_names

PROVENANCE_VERSION = 1
#: Distributions whose versions decide or show what was made.
_TOOLS = ("torch", "numpy", "safetensors", "transformers", "huggingface_hub", "lm_eval")
#: What the record of a merge job says that another run of the same job would say too.
_RECORDED = ("sha256", "size", "whole_copy", "nonfinite")
#: The same of a model's verification.
_VERIFIED = (
    "passed",
    "hashed",
    "copies",
    "recomputed_independently",
    "recomputed_by_engine_steps",
    "verified_by_probes",
    "not_sampled",
    "elements",
    "largest_error_in_bounds",
    "undecided",
    "nonfinite",
)


def make_provenance(
    build: str,
    description: BuildDescription,
    records: Mapping[str, MergeRecord],
    verified: VerifyRecord,
    folder: Path,
    files: Iterable[Path],
) -> dict[str, Any]:
    """Return the provenance of a model as JSON-able data.

    It has no times, no names of machines or users, and no absolute paths.

    Args:
        build: The build's digest.
        description: Its description.
        records: The shards' records, by name.
        verified: What verification found.
        folder: The model's.
        files: Its files besides the shards.

    Raises:
        UserError: If a file lies elsewhere or cannot be read.
    """
    names = public_names(description.sources)
    outputs = {s.file: _shard_row(s, records) for s in description.shards}
    for path in map(Path, files):
        name = name_within(path, folder)
        outputs.setdefault(name, {"sha256": sha256_of(path), "size": path.stat().st_size})
    return {
        "version": PROVENANCE_VERSION,
        "name": description.name,
        "build": build,
        "recipe": recipe_row(description.recipe, description.stages),
        "numerics": description.numerics,
        **({"seeds": forms.written(description.seeds)} if description.seeds else {}),
        **_decoded(description, names),
        **_made_rows(description, names),
        "dtype": description.dtype,
        "reference": names.get(description.reference, description.reference),
        **_kind(description, names),
        "sources": {
            names[key]: with_states(source, verified.source_sha256)
            for key, source in description.sources.items()
        },
        **made_sources(description.made, names),
        "copied": dict(description.files),
        "tools": tool_versions(),
        "verified": {key: getattr(verified, key) for key in _VERIFIED},
        "outputs": outputs,
    }


def recipe_row(recipe: RecipeFile, stages: Iterable[StageText]) -> dict[str, Any]:
    """Return what a provenance tells of a recipe and of the documents that were used."""
    return {
        "file": PurePosixPath(recipe.file).name,
        "sha256": hashlib.sha256(recipe.text.encode()).hexdigest(),
        "stages": [
            {
                "name": stage.name,
                "method": stage.method,
                "sha256": hashlib.sha256(stage.text.encode()).hexdigest(),
            }
            for stage in stages
        ],
    }


def made_sources(made: Iterable[DescribedMade], names: Mapping[str, str]) -> dict[str, Any]:
    """Return what a provenance tells of sources that jobs made, nothing if there are none.

    Args:
        made: Each with what it was made from.
        names: Public names of models, by reference.
    """
    texts = dict(one.text for one in made if one.text)
    titles = public_names(texts)
    rows = []
    for one in made:
        files: dict[str, dict[str, str]] = {}
        for model, name, identity in one.files:
            files.setdefault(names.get(model, model), {})[name] = identity
        text = {"text": titles[one.text[0]]} if one.text else {}
        rows.append({"kind": one.kind, "digest": one.digest, "files": files, **text})
    told = {titles[path]: {"sha256": sha256} for path, sha256 in texts.items()}
    return ({"made_sources": rows} if rows else {}) | ({"texts": told} if told else {})


def _decoded(description: BuildDescription, names: Mapping[str, str]) -> dict[str, Any]:
    """Return how many quantised weights of each source were decoded, nothing if none were."""
    found = {names.get(key, key): value for key, value in description.decoded.items()}
    return {"decoded": forms.written(found)} if found else {}


def _kind(description: BuildDescription, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what the tokenizer is from, or that it is a checkpoint, which has none."""
    if description.checkpoint:
        return {CHECKPOINT: True}
    return {"tokenizer": names.get(description.tokenizer, description.tokenizer)}


def _made_rows(description: BuildDescription, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what became of tokens that models lacked, nothing if no rows were made for them."""
    rows = [
        {"model": names.get(model, model), "method": method, "own": own, "made": made}
        for model, method, own, made in description.tokens.made_rows
    ]
    return {"made_rows": rows} if rows else {}


def _shard_row(shard: DescribedShard, records: Mapping[str, MergeRecord]) -> dict[str, Any]:
    if shard.file not in records:
        raise UserError("has no record of the job that made it", shard.file)
    record = records[shard.file]
    return {key: getattr(record, key) for key in _RECORDED} | {
        "specification": shard.digest,
        "tensors": len(shard.tensors),
        "tensor_bytes": sum(tensor_bytes(*row) for row in shard.tensors.values()),
    }


def tool_versions() -> dict[str, str]:
    """Return the versions of what made the model; what is not installed is left out."""
    versions = {"python": platform.python_version(), "shardmerge": __version__}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
