"""`sources_check`: what a sample of a large file cannot tell, and a hash of all its bytes can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.models import LLAMA
from helpers.workflow import Project
from shardmerge.base.safetensors import write_header

RECIPE = """\
name: merged
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: 0.5}}
dtype: float16
"""
#: 93 MiB, of which a sample reads 4.
SHAPE = (93, 1 << 19)
#: Behind the third of the sample's 64 blocks; the fourth begins 1.46 MB later.
OFFSET, LENGTH = 3_170_000, 1_460_000


def large_model(folder: Path, seed: int) -> Path:
    """Write a model of one large tensor; return its file of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 0}))
    block = np.random.default_rng(seed).integers(1, 100, SHAPE[1]).astype("<f2").tobytes()
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(write_header([("model.embed_tokens.weight", "F16", SHAPE)], {"format": "pt"}))
        for _ in range(SHAPE[0]):
            file.write(block)
    return path


@pytest.mark.slow
def test_zeros_between_two_samples(tmp_path: Path) -> None:
    source = large_model(tmp_path / "models" / "a", 1)
    large_model(tmp_path / "models" / "b", 2)
    project = Project(tmp_path)
    project.recipe.write_text(RECIPE)
    models = {name: f"models/{name}" for name in "ab"}
    results = tmp_path / "results" / "merged"

    def states() -> set[Any]:
        told = json.loads((results / "model" / "provenance.json").read_text())["sources"]
        return {source["checked"]["model.safetensors"] for source in told.values()}

    project.configure(sources=models)
    project.build("models")
    assert states() == {"sampled"}
    project.configure(sources=models, sources_check="full")
    project.build("models")
    assert states() == {"hashed"}
    assert project.pending("models") == []

    with open(source, "r+b") as file:
        file.seek(OFFSET)
        file.write(bytes(LENGTH))
    done = project.run("models")
    assert done.returncode != 0
    log = "".join(p.read_text() for p in (tmp_path / "logs" / "hash_source").iterdir())
    assert "where its sample does not tell it" in log and "snakemake lock" in log

    project.build("lock")
    project.build("models")
    assert states() == {"hashed"}
    assert '"sha256"' in (tmp_path / "recipe.lock.json").read_text()
    assert project.pending("models") == []
