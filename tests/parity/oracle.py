"""mergekit 0.1.5 as an oracle: run on the same recipe and checkpoints, compared as integers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from shardmerge.base.files import load_json
from shardmerge.base.numerics import MERGEKIT
from shardmerge.compose.architecture.names import is_vocabulary
from shardmerge.compose.composer import Composer
from shardmerge.engine import build_shard
from shardmerge.engine.stored import stored_deltas
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.plan.making import MADE_KINDS, MakeTask, load_made_spec
from shardmerge.recipe.recipe import load_recipe
from shardmerge.recipe.references import Reference
from shardmerge.recipe.settings import load_settings
from shardmerge.sources.lock import Lock
from shardmerge.sources.sources import lock_path


def run_mergekit(
    recipe: Path, out: Path, *, lazy: bool = False, **options: object
) -> dict[str, dict[str, torch.Tensor]]:
    """Merge all documents of a recipe with mergekit; return the tensors of each by name.

    One document is merged as ``mergekit-yaml`` does it, several as ``mergekit-multi``.

    Args:
        recipe: The recipe file; what a document without a name makes has that of the file.
        out: Folder for the models' folders.
        lazy: As ``mergekit-multi --lazy``, which is its default.
        options: More of mergekit's MergeOptions.
    """
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from mergekit.scripts.multimerge import load_config, make_tasks

    LoaderCache().loaders.clear()  # it keeps models of earlier runs, by path
    values = {"quiet": True, "copy_tokenizer": False, "write_model_card": False} | options
    text = recipe.read_text()
    documents = list(yaml.safe_load_all(text))
    names = [document.get("name", recipe.stem) for document in documents]
    if len(documents) == 1 and not lazy:
        config = MergeConfiguration.model_validate(documents[0])
        run_merge(config, str(out / names[0]), MergeOptions(**values))
        return {names[0]: load_folder(out / names[0])}
    configs, dependencies = load_config(text, str(out))
    unnamed = str(out / recipe.stem)
    tasks = make_tasks(configs, dependencies, MergeOptions(**values), str(out), unnamed, lazy)
    done = set()

    def execute(task: Any) -> None:
        if task.name in done:
            return
        done.add(task.name)
        for needed in task.arguments().values():
            execute(needed)
        task.execute()

    for task in tasks:
        execute(task)
    return {name: load_folder(out / name) for name in names}


def run_shardmerge(recipe: Path, work: Path, **config: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Build the recipe's final models in-process; return their tensors by name."""
    old = Path.cwd()
    os.chdir(work)
    try:
        settings = load_settings({"recipes": [str(recipe)], **config})
        plan = load_plan(settings, say=lambda line: None)
        for job in plan.made.values():
            MADE_KINDS[job.kind].make(MakeTask(job, load_made_spec(job), Path(job.output)))
        for job in [*plan.deltas, *(j for b in plan.builds.values() for j in b.shards)]:
            spec = load_spec(job.digest)
            deltas = [Path(p) for p in job.deltas]
            files = spec.required_files(stored_deltas(spec, deltas))
            inputs = dict(zip(files, map(Path, job.sources), strict=True))
            Path(job.output).parent.mkdir(parents=True, exist_ok=True)
            build_shard(spec, inputs, Path(job.output), deltas=deltas)
        builds = plan.builds.items()
        return {name: load_folder(Path(b.shards[0].output).parent) for name, b in builds}
    finally:
        os.chdir(old)


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint folder."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def planned_ids(recipe: Path, name: str) -> dict[str, int]:
    """Return the ids that the plan gives to a stage's tokens; the recipe must be locked."""
    lock = Lock.from_json(load_json(lock_path(recipe)), "lock")
    composer = Composer(load_recipe(recipe), lock, MERGEKIT)
    return dict(composer.tokenizers.of(Reference(name)).ids)


def rows_by_token(tensors: dict[str, torch.Tensor], ids: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return tensors whose embeddings have a row for every token, in the tokens' order."""
    rows = [ids[token] for token in sorted(ids)]
    return {n: t[rows] if is_vocabulary(n) else t for n, t in tensors.items()}


def differing_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return for each tensor that is not the same, the number of elements that differ in bits."""
    assert sorted(a) == sorted(b)
    found = {}
    for name in a:
        assert a[name].dtype == b[name].dtype, (name, a[name].dtype, b[name].dtype)
        assert a[name].shape == b[name].shape, name
        size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[
            a[name].element_size()
        ]
        count = int((a[name].view(size) != b[name].view(size)).sum())
        if count:
            found[name] = count
    return found
