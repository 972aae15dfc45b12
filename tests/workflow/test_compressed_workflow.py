"""The demo model as compressed safetensors: made shard by shard, loaded by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.workflow import DEMO, REPOSITORY, Project, sha256

pytestmark = pytest.mark.slow
pytest.importorskip("compressed_tensors")

#: Largest Kullback-Leibler divergence from the model's predictions.
SCHEMES = {"fp8-dynamic": 0.05, "w4a16": 0.3, "nvfp4a16": 0.3}
SHARDS = "model-*-of-*.safetensors"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("compressed")
    project = Project(folder)
    configure(project)
    project.build("exports")
    return project


def configure(project: Project, **options: Any) -> None:
    recipe = {
        "name": "demo",
        "merge_method": "linear",
        "models": [{"model": "miqu-tiny"}, {"model": "midnight-tiny"}],
        "parameters": {"weight": 0.5},
        "dtype": "float16",
    }
    project.recipe.write_text(yaml.safe_dump(recipe))
    settings = {
        "recipes": ["recipe.yaml"],
        "max_shard_size": "600KB",
        "sources": {n: str(REPOSITORY / DEMO / n) for n in ("miqu-tiny", "midnight-tiny")},
        "exports": {"compressed": {"schemes": list(SCHEMES), "group_size": 32} | options},
    }
    (project.folder / "cfg.yaml").write_text(yaml.safe_dump(settings))


def results(project: Project) -> Path:
    return project.folder / "results" / "demo"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_loads_in_transformers_and_predicts_nearly_the_same(project: Project, scheme: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = results(project) / "exports" / scheme
    own = AutoModelForCausalLM.from_pretrained(results(project) / "model", dtype=torch.float32)
    made, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not (report["missing_keys"] or report["unexpected_keys"])
    tokens = AutoTokenizer.from_pretrained(folder)("Babcd=abcdefgh", return_tensors="pt")
    with torch.no_grad():
        wanted, found = (
            model(tokens["input_ids"]).logits.float().log_softmax(-1) for model in (own, made)
        )
    apart = (wanted.exp() * (wanted - found)).sum(-1).mean()
    assert 0 < float(apart) < SCHEMES[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_package(project: Project, scheme: str) -> None:
    folder = results(project) / "exports" / scheme
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert {n: sha256(folder / n) for n in sums} == sums
    shards = sorted(path.name for path in folder.glob(SHARDS))
    assert shards == sorted(path.name for path in (results(project) / "model").glob(SHARDS))
    assert {*shards, "config.json", "tokenizer.json", "README.md"} <= set(sums) and len(shards) > 1
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "compressed-tensors" and "lm_head" in told["ignore"][0]
    checked = results(project) / "exports" / "checks" / scheme / f"{scheme}.json"
    record = json.loads(checked.read_text())
    assert len(record["errors"]["tensors"]) == 84 == len(record["errors"]["farthest"])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["variants"][scheme]["errors"] == record["errors"]


def test_what_is_lost_is_made_again_and_nothing_else(project: Project) -> None:
    assert project.pending("exports") == []
    folder = results(project) / "exports" / "w4a16"
    lost = sorted(folder.glob(SHARDS))[0]
    content = sha256(lost)
    lost.unlink()
    pending = project.pending("exports", "--until", "compress_shard")
    assert pending == [str(lost.relative_to(project.folder))]
    project.build("exports")
    assert sha256(lost) == content
