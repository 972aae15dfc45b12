"""LoRA adapters of small recipes, made in this process by the functions that the jobs call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardmerge.algebra.factorization import FactorRecord
from shardmerge.check.factors import check_factors
from shardmerge.engine import build_shard
from shardmerge.engine.factors import build_factors
from shardmerge.package.adapter import (
    adapter_config,
    base_name,
    config_text,
    join_factors,
)
from shardmerge.plan.adapter_description import load_adapter, load_factor_spec, made_modules
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.recipe.settings import load_settings


def extract(*documents: Mapping[str, Any], **config: Any) -> tuple[Path, list[FactorRecord]]:
    """Make the one adapter of a recipe in the working folder; return it and the jobs' records."""
    Path("recipe.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    Path("recipe.lock.json").unlink(missing_ok=True)
    plan = load_plan(load_settings({"recipes": ["recipe.yaml"], **config}), say=lambda line: None)
    (adapter,) = plan.adapters.values()
    records = []
    for update, job in zip(adapter.updates, adapter.factors, strict=True):
        spec = load_spec(update.digest)
        sources = dict(zip(spec.required_files(), map(Path, update.sources), strict=True))
        build_shard(spec, sources, Path(update.output))
        factors = load_factor_spec(job.digest)
        output = Path(job.output)
        records.append(build_factors(factors, Path(update.output), output))
        check_factors(factors, Path(update.output), output, records[-1])
    description = load_adapter(adapter.digest)
    specs = [load_factor_spec(digest) for digest in description.factors]
    made = made_modules(specs, [record.modules for record in records])
    folder = Path("results") / adapter.name / "adapter"
    config_of = adapter_config(description, made, base_name(description))
    join_factors(
        [Path(job.output) for job in adapter.factors], folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(config_text(config_of))
    return folder, records
