"""Jobs of which is said that they need no torch import none, of any method in any numerics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import engine_cases, kernel_cases
from helpers.engine_cases import Models
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.check.memory import check_needs_torch
from shardmerge.engine import native
from shardmerge.engine.tasks import make_tasks, needs_torch
from shardmerge.methods.registry import methods

#: More elements than a sample has, and than a tile.
SHAPE = (131, 1003)
pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")
#: Builds or checks each of some shards where nothing can import torch.
SCRIPT = """
import json, pathlib, sys
class Refused:
    def find_spec(self, name, *_):
        if name == "torch":
            raise RuntimeError("torch is imported")
sys.meta_path.insert(0, Refused())
from types import SimpleNamespace
from shardmerge.algebra.spec import ShardSpec
from shardmerge.check.shard import check_shard
from shardmerge.engine import build_shard
folder, failed = pathlib.Path(sys.argv[2]), {}
for name, (data, passes) in json.load(sys.stdin).items():
    spec = ShardSpec.from_json(data)
    paths = {key: folder / f"{key[0]}.safetensors" for key in spec.files}
    try:
        if sys.argv[1] == "merge":
            build_shard(spec, paths, folder / "found.safetensors")
        else:
            told = SimpleNamespace(sha256=None, xxh3=None, passes=passes, probes={})
            check_shard(spec, folder / f"{name}.safetensors", paths, [], told)
    except RuntimeError as error:
        failed[name] = repr(error)
assert not failed, failed
"""


def shards(models: Models, numerics: Numerics) -> dict[str, ShardSpec]:
    """Return a shard of each method that has a kernel, and of each of its examples."""
    found = {}
    for declared in methods():
        if numerics not in declared.renderings or declared.bounds:
            continue
        for number, values in enumerate(declared.examples.values()):
            group = kernel_cases.ordinary(declared.name, (1,), 3, torch.float16, **values)
            inputs = [models.source(f"m{i}") for i in range(len(group.tensors))]
            call = engine_cases.call_of(declared.name, group, inputs)
            call = replace(call, output_shape=SHAPE)
            spec = models.spec({"w": ("F16", call)}, numerics=numerics, allow_nonfinite=True)
            found[f"{declared.name}-{number}"] = spec
    return found


def without_torch(job: str, folder: Path, some: Mapping[str, tuple[ShardSpec, dict]]) -> None:
    """Do some jobs in a process that cannot import torch."""
    given = {name: (spec.to_json(), passes) for name, (spec, passes) in some.items()}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, job, folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(given),
        text=True,
        check=True,
    )


@pytest.mark.parametrize("numerics", [FLOAT32, MERGEKIT], ids=str)
def test_what_needs_no_torch_imports_none(tmp_path: Path, numerics: Numerics) -> None:
    made = kernel_cases.tensors(4, SHAPE, "tuned", 3, torch.float16)
    models = Models(tmp_path, {f"m{i}": {"w": tensor} for i, tensor in enumerate(made)})
    every = shards(models, numerics)
    merged = {n: (s, {}) for n, s in every.items() if not needs_torch(make_tasks(s))}
    assert len(merged) > 5
    without_torch("merge", tmp_path, merged)
    checked = {}
    for name, (spec, _) in merged.items():
        if not check_needs_torch(make_tasks(spec)):
            checked[name] = spec, models.build(spec, f"{name}.safetensors").passes
    assert checked
    without_torch("check", tmp_path, checked)
