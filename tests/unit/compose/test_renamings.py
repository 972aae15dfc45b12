"""Vision-language models under the names of first releases and under newer ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.models import LLAMA, random_tensors, save_model
from helpers.planned import described
from shardmerge.compose.tensor_matching import align_names

LLAVA = {
    "language_model.model.layers.0.mlp.up_proj.weight": (
        "model.language_model.layers.0.mlp.up_proj.weight"
    ),
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.layers.0.fc.weight": "model.vision_tower.layers.0.fc.weight",
    "multi_modal_projector.linear_1.weight": "model.multi_modal_projector.linear_1.weight",
    "image_newline": "model.image_newline",
}
EMU = {
    "text_model.model.layers.0.mlp.up_proj.weight": "model.text_model.layers.0.mlp.up_proj.weight",
    "text_model.lm_head.weight": "lm_head.weight",
    "vqmodel.encoder.weight": "model.vqmodel.encoder.weight",
}
QWEN = {
    "model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight",
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "visual.blocks.0.fc.weight": "model.visual.blocks.0.fc.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize("names", [LLAVA, EMU, QWEN], ids=["llava", "emu", "qwen"])
class TestBothWays:
    def test_old_as_new(self, names: dict[str, Any]) -> None:
        assert align_names(names, names.values()) == {new: old for old, new in names.items()}

    def test_new_as_old(self, names: dict[str, Any]) -> None:
        assert align_names(names.values(), names) == names

    def test_alike_stay(self, names: dict[str, Any]) -> None:
        assert align_names(names, names) == {name: name for name in names}


def test_a_language_model_is_not_the_decoder_of_a_larger_one() -> None:
    text = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    assert align_names(text, QWEN.values()) == {name: name for name in text}


def test_a_merge_has_the_names_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = LLAMA | {"num_hidden_layers": 1}
    for i, (name, names) in enumerate((("a", LLAVA), ("b", LLAVA.values()))):
        save_model(tmp_path / name, random_tensors(dict.fromkeys(names, (4, 4)), i), config=config)
    for base in "ab":
        models = [{"model": m, "parameters": {"weight": 0.5}} for m in "ab"]
        recipe = {"name": "out", "merge_method": "linear", "base_model": base, "models": models}
        shards = described(recipe)[0]["shards"]
        found = {name for shard in shards for name in shard["tensors"]}
        assert found == set(LLAVA if base == "a" else LLAVA.values())
