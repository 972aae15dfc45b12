"""A mixture whose routers are made from hidden states, from the sources to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_tokenizers import WORDS, tokenized
from helpers.workflow import Project
from shardmerge.base.files import load_json

pytestmark = pytest.mark.slow
_MIXTURE: dict[str, Any] = {
    "name": "mix",
    "base_model": "models/base",
    "gate_mode": "hidden",
    "dtype": "float32",
    "experts": [
        {"source_model": "models/a", "positive_prompts": ["the cat sat", "dog"]},
        {"source_model": "models/b", "positive_prompts": ["-big dog ran"]},
    ],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("mixture")
    for seed, name in enumerate(["base", "a", "b"]):
        tokenized(folder / "models" / name, seed, WORDS, {"<s>": True}, bos_token="<s>")
    made = Project(folder)
    made.configure(sources={})
    made.write_documents([_MIXTURE])
    made.build("models", "results/mix/loaded.json", "report")
    return made


def _hidden(project: Project) -> Path:
    (path,) = (project.folder / "results/measured").glob("*.safetensors")
    return path


def test_routers_are_what_the_model_makes_of_prompts(project: Project) -> None:
    hidden = load_file(_hidden(project))
    model: dict[str, torch.Tensor] = {}
    for path in (project.folder / "results/mix/model").glob("*.safetensors"):
        model |= load_file(path)
    for layer in range(2):
        gate = model[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        assert torch.equal(gate, hidden[f"layers.{layer}"])
        # directions in bfloat16
        torch.testing.assert_close(gate.norm(dim=1), torch.ones(2), rtol=0.01, atol=0.0)
    assert load_json(project.folder / "results/mix/loaded.json")["architecture"] == (
        "MixtralForCausalLM"
    )


def test_what_is_made_has_the_size_that_was_planned(project: Project) -> None:
    for job, path in project.made():
        assert sum(tensor.nbytes for tensor in load_file(path).values()) == job.bytes_written


def test_an_edit_of_experts_does_not_read_prompts_again(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    experts = [{**_MIXTURE["experts"][0], "residual_scale": 0.5}, _MIXTURE["experts"][1]]
    copy.write_documents([_MIXTURE | {"experts": experts}])
    pending = copy.pending()
    assert any("model" in path and path.endswith(".safetensors") for path in pending)
    assert not any("results/measured/" in path for path in pending)
    experts = [{**_MIXTURE["experts"][0], "positive_prompts": ["red"]}, _MIXTURE["experts"][1]]
    copy.write_documents([_MIXTURE | {"experts": experts}])
    assert any("results/measured/" in path for path in copy.pending())
