"""Checks of methods in passes: of tensors of any size, without torch, and a fault is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import engine_cases as cases
from helpers import method_bytes
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.base.safetensors import read_header
from shardmerge.check import recompute
from shardmerge.check.shard import check_shard
from shardmerge.engine import native
from shardmerge.methods.registry import method

#: More elements than are sampled, in rows and tiles that do not end together.
SHAPE = (37, 3001)

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[cases.Models, ShardSpec]:
    """Return models and a shard of a tensor of each method in passes, which is built."""
    made = method_bytes.groups(SHAPE, torch.float16)
    made = {k: v for k, v in made.items() if method(v[0]).rendering(FLOAT32).passes}
    most = max((group.tensors for _, group in made.values()), key=len)
    folder = tmp_path_factory.mktemp("passes")
    models = cases.Models(folder, {f"m{i}": {"w": t} for i, t in enumerate(most)})
    rows = {
        label: ("F16", method_bytes.call_of(name, group, models))
        for label, (name, group) in made.items()
    }
    spec = models.spec(rows)
    models.build(spec)
    return models, spec


def test_they_pass_whatever_their_size(
    built: tuple[cases.Models, ShardSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, spec = built
    monkeypatch.setattr(recompute, "WHOLE", 100)
    found = check_shard(spec, models.folder / "out.safetensors", models.paths, [])
    assert found["not_sampled"] == []
    assert found["undecided"] == 0
    assert found["recomputed_by_engine_steps"] == len(spec.tensors)


def test_they_need_no_torch(built: tuple[cases.Models, ShardSpec]) -> None:
    models, spec = built
    script = (
        "import json, pathlib, sys\n"
        "from shardmerge.algebra.spec import ShardSpec\n"
        "from shardmerge.check.shard import check_shard\n"
        "spec, folder = ShardSpec.from_json(json.load(sys.stdin)), pathlib.Path(sys.argv[1])\n"
        "paths = {key: folder / f'{key[0]}.safetensors' for key in spec.files}\n"
        "check_shard(spec, folder / 'out.safetensors', paths, [])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, models.folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(spec.to_json()),
        text=True,
        check=True,
    )


def test_a_fault_is_found_in_each(built: tuple[cases.Models, ShardSpec], tmp_path: Path) -> None:
    models, spec = built
    data = (models.folder / "out.safetensors").read_bytes()
    for tensor in spec.tensors:
        entry = read_header(models.folder / "out.safetensors").tensors[tensor.name]
        wrong = bytearray(data)
        values = torch.frombuffer(wrong, dtype=torch.float16)[entry.begin // 2 : entry.end // 2]
        values[:200] *= 1.004
        path = tmp_path / "wrong.safetensors"
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="must be"):
            check_shard(spec, path, models.paths, [])
