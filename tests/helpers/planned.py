"""Plans of small recipes in the working directory, and what they say of one build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from shardmerge.base.files import load_json
from shardmerge.base.numerics import FLOAT32, Numerics
from shardmerge.compose.composer import Composer
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import description_path
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock
from shardmerge.sources.sources import Sources, lock_path


def slices(*runs: tuple[str, int, int]) -> dict[str, Any]:
    """Return a recipe that stacks layers: model, first layer, the one behind the last."""
    rows = [{"sources": [{"model": m, "layer_range": [a, b]}]} for m, a, b in runs]
    return {"name": "out", "merge_method": "passthrough", "slices": rows, "dtype": "float16"}


def described(*documents: dict[str, Any], **config: Any) -> tuple[dict[str, Any], list[str]]:
    """Plan a recipe of one model; return its description and the warnings."""
    Path("recipe.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    Path("recipe.lock.json").unlink(missing_ok=True)
    settings = load_settings({"recipes": ["recipe.yaml"], **config})
    plan = load_plan(settings, say=lambda line: None)
    (build,) = plan.builds.values()
    return json.loads(description_path(build.digest).read_text()), list(plan.warnings)


def locked(folder: Path, document: dict[str, Any], numerics: Numerics = FLOAT32) -> Composer:
    """Write a recipe r.yaml and its lock, which is read as it was made; return its composer."""
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    recipe = load_recipe(path)
    sources = Sources({}, folder / "models", folder / "cache")
    lock = sources.lock(recipe, write=True, renew=False, say=lambda line: None)
    written = Lock.from_json(load_json(lock_path(path)), "lock").sources
    assert {key: written[key] for key in lock.sources} == lock.sources
    return Composer(recipe, lock, numerics)
