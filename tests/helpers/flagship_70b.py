"""Plans over locks of real shapes: Llama 2 of 7B and 70B, files of at most 10 GB each.

The README's figures come from the planner run over them. As a program it prints the plan of the
flagship recipe as it is kept, for a file `flagship.json`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from helpers.models import llama_shapes
from shardmerge.base.identities import LockedFile
from shardmerge.base.sealed import seal
from shardmerge.plan.plan import Plan
from shardmerge.plan.planner import make_plan
from shardmerge.recipe.recipe import load_recipe, parse_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor

RECIPE = Path(__file__).parents[2] / "config" / "recipes" / "miquplus-midnight-70b.yaml"

MODELS = tuple(reference.model for reference in load_recipe(RECIPE).sources)
_LARGEST_FILE = 10_000_000_000

Shapes = dict[str, tuple[int, ...]]


def llama_7b() -> Shapes:
    """Return the tensors of a 7B Llama 2 model with their shapes, in checkpoint order."""
    return llama_shapes(layers=32, hidden=4096, inter=11008, vocab=32000, kv=4096)


def llama_70b() -> Shapes:
    """Return the same of a 70B model."""
    return llama_shapes(layers=80, hidden=8192, inter=28672, vocab=32000, kv=1024)


def plan_of(recipe: str, shapes: Shapes) -> Plan:
    """Return a recipe's plan over sources of these shapes, without benchmarks.

    Args:
        recipe: Its text.
        shapes: Of every source's tensors.
    """
    parsed = parse_recipe(recipe, "recipe.yaml")
    lock = lock_of((reference.model for reference in parsed.sources), shapes)
    settings = load_settings({"recipes": ["recipe.yaml"], "benchmark": {"tasks": []}})
    return make_plan([(parsed, lock)], settings, lambda key, _, file: f"{key}/{file}").plan


def lock_of(models: Iterable[str], shapes: Shapes) -> Lock:
    """Return the lock of models that are laid out alike."""
    return Lock({name: _source(name, shapes) for name in models})


def flagship_lock() -> Lock:
    """Return the lock that the flagship's models would have, were each laid out alike."""
    return lock_of(MODELS, llama_70b())


def flagship_plan() -> Plan:
    """Return the flagship's plan over that lock."""
    return plan_of(RECIPE.read_text(encoding="utf-8"), llama_70b())


def _source(repo: str, shapes: Shapes) -> LockedSource:
    groups: list[list[tuple[str, tuple[int, ...], int]]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if used + size > _LARGEST_FILE:
            groups.append([])
            used = 0
        groups[-1].append((name, shape, size))
        used += size
    files, tensors = {}, {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        begin = 0
        for name, shape, size in group:
            tensors[name] = LockedTensor(file, "F16", shape, begin, begin + size)
            begin += size
        files[file] = LockedFile(begin, sha256=f"{number:064x}")
    files["config.json"] = LockedFile(600, sha256="f" * 64)
    return LockedSource("hub", repo, None, "0" * 40, {}, files, tensors)


if __name__ == "__main__":
    sys.stdout.write(seal(flagship_plan().to_json(), "flagship"))
