"""A forked job has all that it needs: it imports nothing, whatever method it merges by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.engine_cases import Models
from helpers.method_bytes import SHAPES, call_of, groups
from shardmerge.engine import make_tasks, native
from shardmerge.engine.tasks import needs_torch

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="merging imports torch")

SCRIPT = """
import json, pathlib, sys
from shardmerge.run.forking import _PRELOADED
for module in _PRELOADED["plain"]:
    __import__(module)
before = set(sys.modules)
from shardmerge.algebra.spec import ShardSpec
from shardmerge.check.memory import check_needs_torch
from shardmerge.check.shard import check_shard
from shardmerge.engine import build_shard, make_tasks
from shardmerge.plan.records import load_record
folder, checked = pathlib.Path(sys.argv[1]), 0
for spec in map(ShardSpec.from_json, json.load(sys.stdin)):
    paths = {key: folder / f"{key[0]}.safetensors" for key in spec.required_files([])}
    record = build_shard(spec, paths, folder / "out")
    (folder / "record").write_text(json.dumps(record.to_json()))
    if not check_needs_torch(make_tasks(spec)):
        check_shard(spec, folder / "out", paths, [], load_record(folder / "record"))
        checked += 1
print(checked, *sorted(set(sys.modules) - before))
"""


def test_merges_and_checks_import_nothing(tmp_path: Path) -> None:
    made = groups(SHAPES[0], torch.float16)
    most = max((group.tensors for _, group in made.values()), key=len)
    models = Models(tmp_path, {f"m{i}": {"w": tensor} for i, tensor in enumerate(most)})
    specs = [
        models.spec({"w": ("F16", call_of(name, group, models))}, allow_nonfinite=True)
        for name, group in made.values()
    ]
    plain = [spec.to_json() for spec in specs if not needs_torch(make_tasks(spec))]
    assert len(plain) > 20
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(native.__file__).parents[2])},
        input=json.dumps(plain),
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    checked, *imported = done.stdout.split()
    assert int(checked) > 20
    assert imported == []
