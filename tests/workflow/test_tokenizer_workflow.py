"""A recipe of models with different tokenizers, from the sources to the benchmark table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.renumbered import write_renumbered
from helpers.workflow import REPOSITORY, Project, scores

DEMO = REPOSITORY / "resources" / "demo"
TASKS = ["demo_B", "demo_C"]
WANTED = ("models", "benchmarks", "results/union/loaded.json")


def with_other_ids(source: Path, target: Path) -> Path:
    """Write a model that is the same by other ids: tokens shuffled, and one more at the end.

    Args:
        source: A model.
        target: Folder to write.
    """

    def extend(table: dict[str, Any], first: int) -> int:
        new = {"id": first, "content": "<new>", "special": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        table["added_tokens"] = sorted([*table["added_tokens"], new | flags], key=lambda r: r["id"])
        return 1

    return write_renumbered(
        source, target, extend, lambda whole, vocab: torch.full_like(whole[:1], 0.25)
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("tokenizers"))
    shuffled = with_other_ids(DEMO / "midnight-tiny", project.folder / "shuffled")
    recipient = str(DEMO / "miqu-tiny")

    def document(name: str, other: Path, **keys: object) -> dict:
        weights = [{"filter": "mlp", "value": 0.4}, {"value": 0.6}]
        return {
            "name": name,
            "merge_method": "linear",
            "base_model": recipient,
            "models": [
                {"model": recipient, "parameters": {"weight": 1}},
                {"model": str(other), "parameters": {"weight": weights}},
            ],
            "dtype": "float16",
        } | keys

    block = {"source": "union", "pad_to_multiple_of": 8}
    project.write_documents(
        [
            document("plain", DEMO / "midnight-tiny"),
            document("union", shuffled, tokenizer=block, chat_template="chatml"),
        ]
    )
    config = {
        "recipes": ["recipe.yaml"],
        "benchmark": {
            "models": ["merged"],
            "tasks": TASKS,
            "include_path": str(REPOSITORY / "config/tasks/demo"),
            "limit": 40,
            "per": "model",
        },
    }
    (project.folder / "cfg.yaml").write_text(yaml.safe_dump(config))
    project.build(*WANTED)
    return project


def tensors(project: Project, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in (project.folder / "results" / name / "model").glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.slow
class TestUnion:
    def test_other_ids_of_the_same_tokens_change_nothing(self, project: Any) -> None:
        plain, union = tensors(project, "plain"), tensors(project, "union")
        assert plain.keys() == union.keys()
        for name, value in plain.items():
            rows = len(value) if name.startswith(("model.embed", "lm_head")) else None
            assert torch.equal(union[name][:rows], value), name

    def test_a_new_token(self, project: Any) -> None:
        plain, union = tensors(project, "plain"), tensors(project, "union")
        count = len(plain["lm_head.weight"])
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert union[name].shape == (-(-(count + 1) // 8) * 8, 64)
            # every model takes the only row that there is
            assert (union[name][count] == 0.25).all()
            assert (union[name][count + 1 :] == union[name][-1]).all()

    def test_package(self, project: Any) -> None:
        folder = project.folder / "results" / "union" / "model"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        size = len(AutoTokenizer.from_pretrained(DEMO / "miqu-tiny"))
        assert tokenizer.convert_tokens_to_ids("<new>") == size == len(tokenizer) - 1
        assert tokenizer.decode(tokenizer.encode("Kkej=<new>")) == "<s>Kkej=<new>"
        assert "<|im_start|>" in tokenizer.chat_template
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == -(-(size + 1) // 8) * 8
        sums = (folder / "SHA256SUMS").read_text()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert f"  {name}\n" in sums
        assert not (project.folder / "results/union/tokenizer/tokenizer.json").exists()

    def test_verified_and_measured(self, project: Any) -> None:
        results = project.folder / "results/union"
        assert json.loads((results / "verify.json").read_text())["passed"]
        loaded = json.loads((results / "loaded.json").read_text())
        assert loaded["passed"] and loaded["loaded"] == "weights"
        plain, union = scores(project, "plain"), scores(project, "union")
        for task in TASKS:  # more tokens to choose from move likelihoods a little
            assert abs(union["union", task] - plain["plain", task]) <= 0.2, (union, plain)

    def test_nothing_is_left_to_do(self, project: Any) -> None:
        assert project.pending(*WANTED) == []
