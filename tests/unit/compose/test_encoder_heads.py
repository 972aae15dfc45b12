"""The head of RoBERTa and its kin: a bias for every token beside a last layer that is tied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.built_model import merge, verify
from helpers.planned import described
from shardmerge.compose.architecture.names import is_head, is_tied, is_vocabulary

BIAS = "lm_head.bias"
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = RobertaConfig(**SIZES, num_attention_heads=2, tie_word_embeddings=True)
        model = RobertaForMaskedLM(config)
        torch.nn.init.normal_(model.lm_head.bias)
        model.save_pretrained(name)


def recipe(method: str = "linear") -> dict[str, object]:
    models = [{"model": m, "parameters": {"weight": 0.5}} for m in "ab"]
    return {"name": "out", "merge_method": method, "models": models, "dtype": "float32"}


def test_a_bias_is_no_output_embedding() -> None:
    assert is_vocabulary(BIAS)
    assert not (is_head(BIAS) or is_tied(BIAS))
    assert is_head("lm_head.weight")


def test_the_result_stays_tied() -> None:
    description, warnings = described(recipe())
    assert "tie_word_embeddings" not in description["config"]
    assert warnings == []


def test_a_bias_that_one_model_lacks_is_not_its_embedding() -> None:
    path = Path("b", "model.safetensors")
    tensors = load_file(path)
    del tensors[BIAS]
    save_file(tensors, path)
    _, (warning,) = described(recipe())
    assert "have a bias in a but not in b" in warning


def test_it_is_merged() -> None:
    out = merge(json.dumps(recipe()))
    verify(out)
    a, b, found = (
        load_file(folder / "model.safetensors")[BIAS]
        for folder in (Path("a"), Path("b"), out.folder)
    )
    torch.testing.assert_close(found, (a + b) / 2)
