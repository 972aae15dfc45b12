"""A recipe of slices, from the sources to a model that transformers loads."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.workflow import REPOSITORY, Project

DEMO = REPOSITORY / "resources" / "demo"
LOADED = "results/stack/loaded.json"
LOWER, UPPER = ("llama2-tiny", 0, 8), ("midnight-tiny", 5, 12)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("slices"))
    slices = [
        {"sources": [{"model": str(DEMO / model), "layer_range": [first, last]}]}
        for model, first, last in (LOWER, UPPER)
    ]
    recipe = {"name": "stack", "merge_method": "passthrough", "slices": slices}
    project.write_documents([recipe | {"dtype": "float16"}])
    config = {"recipes": ["recipe.yaml"], "benchmark": {"tasks": []}}
    (project.folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    project.build("models", LOADED)
    return project


def tensors(folder: Any) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


@pytest.mark.slow
class TestStack:
    def test_layers_are_the_sources_renumbered(self, project: Project) -> None:
        made = tensors(project.folder / "results" / "stack" / "model")
        source = {model: tensors(DEMO / model) for model, _, _ in (LOWER, UPPER)}
        wanted, layer = {}, 0
        for model, first, last in (LOWER, UPPER):
            for number in range(first, last):
                old, new = f"model.layers.{number}.", f"model.layers.{layer}."
                wanted |= {
                    new + name.removeprefix(old): tensor
                    for name, tensor in source[model].items()
                    if name.startswith(old)
                }
                layer += 1
        wanted["model.embed_tokens.weight"] = source[LOWER[0]]["model.embed_tokens.weight"]
        for name in ("model.norm.weight", "lm_head.weight"):
            if name in source[UPPER[0]]:
                wanted[name] = source[UPPER[0]][name]
        assert made.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(made[name], tensor), name

    def test_config_counts_them_and_transformers_loads_it(self, project: Project) -> None:
        config = json.loads((project.folder / "results/stack/model/config.json").read_text())
        assert config["num_hidden_layers"] == 15
        assert json.loads((project.folder / LOADED).read_text())["passed"] is True

    def test_a_second_run_has_nothing_to_do(self, project: Project) -> None:
        assert project.pending("models", LOADED) == []
