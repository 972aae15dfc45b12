"""Refusals tell in what two models differ, side by side, and what can be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.adapter_cases import write_adapter
from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from helpers.planned import described
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import FLOAT32
from shardmerge.compose.differences import side_by_side, sizes
from shardmerge.compose.models import SourceModel
from shardmerge.sources.lock import Lock, LockedSource


def save(name: str, layers: int = 3, vocab: int = 32, hidden: int = 16, **config: Any) -> None:
    shapes = llama_shapes(layers, hidden, vocab=vocab)
    values = {"num_hidden_layers": layers, "vocab_size": vocab, "hidden_size": hidden}
    save_model(Path(name), random_tensors(shapes, 1), config=LLAMA | values | config)


def refused(method: str = "linear", **document: Any) -> UserError:
    models = [{"model": m, "parameters": {"weight": 1}} for m in "ab"]
    recipe = {"name": "out", "merge_method": method, "models": models, "dtype": "float16"}
    with pytest.raises(UserError) as caught:
        described(recipe | document)
    return caught.value


_ATTENTION = {"weight": (16, 16), "bias": (16,)}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("a")


class TestModels:
    def test_layers(self) -> None:
        save("b", layers=5)
        hint = refused().hint
        assert hint.startswith("'a' has 3 layers; 'b' has 5 layers.")
        assert "`slices`" in hint

    def test_vocabulary(self) -> None:
        save("b", vocab=40)
        hint = refused().hint
        assert hint.startswith("'a' has a vocabulary of 32; 'b' has a vocabulary of 40.")
        assert "`tokenizer_source: union`" in hint

    def test_width_and_heads(self) -> None:
        save("b", hidden=32, num_attention_heads=4, num_key_value_heads=1)
        hint = refused().hint
        assert hint.startswith("'a' has width 16 and 2 heads; 'b' has width 32 and 4 heads.")
        assert "made from one base" in hint

    def test_everything(self) -> None:
        save("b", layers=2, vocab=40, hidden=32, model_type="mistral", num_key_value_heads=2)
        hint = refused().hint
        assert hint.startswith(
            "'a' has the architecture llama, 3 layers, width 16, 1 heads for keys and values and "
            "a vocabulary of 32; 'b' has the architecture mistral, 2 layers, width 32, "
        )

    def test_a_stage_is_told_as_its_base(self) -> None:
        save("b", hidden=32)
        inner = {"name": "inner", "merge_method": "passthrough", "models": [{"model": "b"}]}
        outer = {"name": "out", "merge_method": "linear", "dtype": "float16"}
        outer["models"] = [{"model": m, "parameters": {"weight": 1}} for m in ("a", "inner")]
        with pytest.raises(UserError) as caught:
            described(inner, outer)
        assert caught.value.hint.startswith("'a' has width 16; 'inner' has width 32.")

    def test_models_that_agree_in_all_terms(self) -> None:
        save("b")
        path = Path("b", "model.safetensors")
        tensors = load_file(path) | {"model.layers.1.mlp.up_proj.weight": torch.zeros(8, 16).half()}
        save_file(tensors, path)
        assert refused().hint == "Only models of one architecture and size can be merged."

    def test_a_method_that_needs_all_tensors(self) -> None:
        save("b", num_attention_heads=4)
        path = Path("b", "model.safetensors")
        tensors = load_file(path) | {"model.layers.1.mlp.up_proj.bias": torch.zeros(24).half()}
        save_file(tensors, path)
        error = refused("task_arithmetic", base_model="a")
        assert "cannot do without it" in error.message
        assert error.hint.startswith("'b' has 4 heads; 'a' has 2 heads.")

    @pytest.mark.parametrize(
        "value", [[], {}, "16", True, 1.5, None, "x" * 9999], ids=lambda v: type(v).__name__
    )
    def test_config_of_strangers(self, value: Any) -> None:
        """What is no number is not told; a text is told in part."""
        told = {"num_attention_heads": value, "head_dim": value, "model_type": value}
        source = LockedSource("local", None, None, None, LLAMA | told, {}, {})
        model = SourceModel("m", Lock({"m": source}), FLOAT32)
        found = sizes(model)
        assert not {"heads", "head size"} & set(found)
        assert len(str(found)) < 1000
        assert side_by_side(model, model) is None


class TestMasks:
    """The causal mask, which older files of GPT-2 hold under a name that ends in `bias`."""

    def test_nobody_misses_it(self) -> None:
        for name, masked in (("a", True), ("b", False)):
            shapes = {"wte.weight": (32, 16)}
            shapes |= {f"h.{i}.attn.c_proj.{p}": s for i in (0, 1) for p, s in _ATTENTION.items()}
            tensors = random_tensors(shapes, 1)
            if masked:
                mask = torch.tril(torch.ones(1, 1, 8, 8))
                tensors |= {f"h.{i}.attn.bias": mask for i in (0, 1)}
            save_model(Path(name), tensors, config={"model_type": "gpt2", "n_layer": 2})
        models = [{"model": m, "parameters": {"weight": 1}} for m in "ab"]
        recipe = {"name": "out", "merge_method": "linear", "models": models, "dtype": "float16"}
        description, warnings = described(recipe)
        assert warnings == []
        (shard,) = description["shards"]
        assert not [name for name in shard["tensors"] if name.endswith("attn.bias")]


class TestAdapters:
    def refused(self, tensors: dict[str, tuple[int, ...]], **config: Any) -> UserError:
        own = {name: torch.ones(shape) for name, shape in tensors.items()}
        write_adapter(Path("ad"), own, **config)
        models = [{"model": "a+ad"}]
        recipe = {"name": "out", "merge_method": "passthrough", "models": models}
        with pytest.raises(UserError) as caught:
            described(recipe | {"dtype": "float16"})
        return caught.value

    def test_of_a_larger_vocabulary(self) -> None:
        prefix = "base_model.model.lm_head."
        names = ("modules_to_save.weight", "original_module.weight", "weight")
        error = self.refused({prefix + name: (34, 16) for name in names})
        assert error.hint.startswith("The adapter is for a vocabulary of 34, 'a' has one of 32.")
        assert "resize_token_embeddings" in error.hint

    def test_of_a_larger_model(self) -> None:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        error = self.refused(
            {f"{name}A.weight": (2, 64), f"{name}B.weight": (64, 2)},
            base_model_name_or_path="lab/large",
            r=2,
        )
        assert "trained on" in error.hint
        assert "names 'lab/large'" in error.hint
