"""Vision-language models under the names of first releases and under newer ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.models import LLAMA, random_tensors, save_model
from helpers.planned import described
from shardmerge.compose.layout_matching import Pattern
from shardmerge.compose.models import Entry, Model

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
CONFIGS = {
    "llava": {"model_type": "llava_next"},
    "emu": {"model_type": "emu3"},
    "qwen": {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "text_config": {"model_type": "qwen2_vl_text"},
    },
}


class Named(Model):
    """A model of names alone."""

    def __init__(
        self, names: Iterable[str], config: Mapping[str, Any], shape: tuple[int, ...] = (2, 2)
    ) -> None:
        self.name = "named"
        self.table = dict.fromkeys(names, Entry("F32", shape))
        self.config = config

    def place(self, tensor: str) -> Any:
        return tensor


def aligned(names: Iterable[str], like: Iterable[str], config: Mapping[str, Any]) -> Any:
    """Return a model's names by those that another has for them."""
    return Pattern(Named(like, config)).fit(Named(names, config)).names


@pytest.mark.parametrize(
    ("names", "kind"),
    [(LLAVA, "llava"), (EMU, "emu"), (QWEN, "qwen")],
    ids=["llava", "emu", "qwen"],
)
class TestBothWays:
    def test_old_as_new(self, names: dict[str, Any], kind: str) -> None:
        found = aligned(names, names.values(), CONFIGS[kind])
        assert found == {new: old for old, new in names.items()}

    def test_new_as_old(self, names: dict[str, Any], kind: str) -> None:
        assert aligned(names.values(), names, CONFIGS[kind]) == names

    def test_alike_stay(self, names: dict[str, Any], kind: str) -> None:
        assert aligned(names, names, CONFIGS[kind]) == {name: name for name in names}


def test_a_language_model_is_the_decoder_of_a_larger_one() -> None:
    text = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    pattern = Pattern(Named(QWEN.values(), CONFIGS["qwen"]))
    found = pattern.fit(Named(text, {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    assert found.names == {QWEN[name]: name for name in text}
    assert "model.visual.blocks.0.fc.weight" in found.lacks
    assert not found.lacks & found.names.keys()


def test_a_merge_has_the_names_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = LLAMA | {"num_hidden_layers": 1, "architectures": None} | CONFIGS["llava"]
    for i, (name, names) in enumerate((("a", LLAVA), ("b", LLAVA.values()))):
        save_model(tmp_path / name, random_tensors(dict.fromkeys(names, (4, 4)), i), config=config)
    for base in "ab":
        models = [{"model": m, "parameters": {"weight": 0.5}} for m in "ab"]
        recipe = {"name": "out", "merge_method": "linear", "base_model": base, "models": models}
        shards = described(recipe)[0]["shards"]
        found = {name for shard in shards for name in shard["tensors"]}
        assert found == set(LLAVA if base == "a" else LLAVA.values())


class TestOperations:
    """Rows of tables that have no family of their own in the tests of merges."""

    @pytest.mark.parametrize(
        ("kind", "fused", "parts"),
        [
            ("hrm_text", "blocks.0.mlp.gate_up_proj.weight", ("mlp.gate_proj", "mlp.up_proj")),
            ("Molmo2TextModel", "blocks.0.self_attn.att_proj.weight",
             ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ],
        ids=["chunk", "split"],
    )  # fmt: skip
    def test_cut_and_joined(self, kind: str, fused: str, parts: tuple[str, ...]) -> None:
        stem = fused.rsplit(".", 3)[0]
        names = [f"{stem}.{part}.weight" for part in parts]
        config = {"model_type": "x", "architectures": [kind]}
        one = Named([fused], config, (6 * len(parts), 4))
        apart = Named(names, config, (6, 4))
        joined = Pattern(one).fit(apart).model
        cut = Pattern(apart).fit(one).model
        assert {n: e.shape for n, e in joined.table.items()} == {fused: (6 * len(parts), 4)}
        assert {n: e.shape for n, e in cut.table.items()} == dict.fromkeys(names, (6, 4))
        assert joined.place(fused) == names[0]

    def test_what_holds_at_the_beginning_does_not_hold_in_a_part(self) -> None:
        """``gemma3n_text`` alone loses a prefix that its place in a larger model has."""
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        part = {"model_type": "x", "text_config": {"model_type": "gemma3n_text"}}
        like = ["model.layers.0.mlp.up_proj.weight"]
        assert aligned([name], like, part) == {name: name}
        assert aligned([name], like, {"model_type": "gemma3n_text"}) == {like[0]: name}

    def test_a_strangers_config(self) -> None:
        config = {"architectures": [["x"]], "model_type": 3, "text_config": {"model_type": {}}}
        assert aligned(["model.a.weight"], ["a.weight"], config) == {"a.weight": "model.a.weight"}
