"""The three models of the flagship recipe as a lock: real shapes, files of at most 10 GB each.

The README's figures on 70 billion parameters come from the planner run over it. As a program it
prints the plan as it is kept, for a file `flagship.json`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from helpers.models import llama_shapes
from shardmerge.base.identities import LockedFile
from shardmerge.base.sealed import seal
from shardmerge.plan.decide import make_plan
from shardmerge.plan.plan import Plan
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor

_RECIPES = Path(__file__).parents[2] / "config" / "recipes"

MODELS = (
    "meta-llama/Llama-2-70b-hf",
    "152334H/miqu-1-70b-sf",
    "sophosympatheia/Midnight-Rose-70B-v2.0.3",
)
_LARGEST_FILE = 10_000_000_000


def llama_70b() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a 70B Llama 2 model with their shapes, in checkpoint order."""
    return llama_shapes(layers=80, hidden=8192, inter=28672, vocab=32000, kv=1024)


def flagship_lock() -> Lock:
    """Return the lock that the flagship's models would have, were each laid out alike."""
    return Lock({name: _source(name) for name in MODELS})


def flagship_plan() -> Plan:
    """Return the flagship's plan over that lock, without benchmarks."""
    path = _RECIPES / "miquplus-midnight-70b.yaml"
    settings = load_settings({"recipes": [str(path)], "benchmark": {"tasks": []}})
    documents = [(load_recipe(path), flagship_lock())]
    return make_plan(documents, settings, lambda key, _, file: f"{key}/{file}").plan


def _source(repo: str) -> LockedSource:
    groups: list[list[tuple[str, tuple[int, ...], int]]] = [[]]
    used = 0
    for name, shape in llama_70b().items():
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
