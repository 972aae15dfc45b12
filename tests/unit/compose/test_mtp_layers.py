"""Layers for multi-token prediction: counted apart, kept behind the last layer, or left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from helpers.planned import described, slices
from helpers.tiny_tokenizers import tokenized
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.numerics import FLOAT32
from shardmerge.compose.architecture.predictors import behind, real_layers
from shardmerge.compose.composer import Composer
from shardmerge.recipe.recipe import load_recipe
from shardmerge.sources.lock import Lock
from shardmerge.sources.sources import lock_path

LAYERS = 4
BEHIND = f"model.layers.{LAYERS}."
QUERY = "self_attn.q_proj.weight"
GRADIENT = [
    {"model": "a", "parameters": {"weight": [1, 0]}},
    {"model": "b", "parameters": {"weight": [0, 1]}},
]


def save(name: str, seed: int, kind: str = "behind", **config: Any) -> None:
    shapes = llama_shapes(LAYERS)
    if kind == "behind":
        shapes |= {n: s for n, s in llama_shapes(LAYERS + 1).items() if n.startswith(BEHIND)}
        shapes[f"{BEHIND}eh_proj.weight"] = (16, 32)
    if kind == "module":
        shapes |= {"mtp.fc.weight": (16, 32), f"mtp.layers.0.{QUERY}": (16, 16)}
    config = LLAMA | {"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1} | config
    save_model(Path(name), random_tensors(shapes, seed), config=config)


def composed(*documents: dict) -> tuple[dict[str, ex.Expression], list[str]]:
    """Return the last document's tensors, and what is said of layers for prediction."""
    _, warnings = described(*documents)
    path = Path("recipe.yaml")
    lock = Lock.from_json(load_json(lock_path(path)), "lock")
    composer = Composer(load_recipe(path), lock, FLOAT32)
    told = [warning for warning in warnings if "mtp-layers" in warning]
    return {t.name: t.expression for t in composer.outputs("out")}, told


def weights(expression: ex.Expression) -> dict[str, float]:
    terms = expression.terms if isinstance(expression, ex.Linear) else ((1.0, expression),)
    return {operand.model: weight for weight, operand in terms}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save("a", 0)
    save("b", 1)


def linear(*models: dict) -> dict:
    return {"name": "out", "merge_method": "linear", "models": list(models), "dtype": "float16"}


class TestCounts:
    def test_a_gradient_ends_at_the_last_real_layer(self) -> None:
        outputs, warnings = composed(linear(*GRADIENT))
        assert weights(outputs[f"model.layers.{LAYERS - 1}.{QUERY}"]) == {"b": 1.0}
        assert weights(outputs[f"model.layers.1.{QUERY}"])["b"] == pytest.approx(1 / 3)
        assert weights(outputs[f"{BEHIND}{QUERY}"]) == {"b": 1.0}
        assert warnings == []

    @pytest.mark.parametrize(
        ("config", "count"),
        [
            ({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}, 2),
            ({"text_config": {"num_hidden_layers": 2, "mtp_num_hidden_layers": 1}}, 2),
            ({"num_hidden_layers": 2}, 3),
            ({"num_nextn_predict_layers": 1}, 3),
            ({"num_hidden_layers": True, "num_nextn_predict_layers": 1}, 3),
            ({"num_hidden_layers": 2, "num_nextn_predict_layers": "1"}, 3),
            ({"num_hidden_layers": 5, "num_nextn_predict_layers": 1}, 3),
        ],
    )
    def test_config_tells_them_apart(self, config: dict[str, Any], count: int) -> None:
        names = [f"model.layers.{i}.mlp.weight" for i in range(3)]
        towers = [f"vision.blocks.{i}.mlp.weight" for i in range(3)]
        counts = real_layers([*names, *towers], config)
        assert counts == {"model.layers.": count, "vision.blocks.": 3}

    def test_so_does_the_projection_that_only_they_have(self) -> None:
        names = [f"model.layers.{i}.mlp.weight" for i in range(3)]
        config = {"num_hidden_layers": 2}
        found = real_layers([*names, "model.layers.2.eh_proj.weight"], config)
        assert found == {"model.layers.": 2}

    def test_models_of_other_depths_have_the_same_behind_the_last(self) -> None:
        four, six = ({"model.layers.": count} for count in (4, 6))
        place = behind("model.layers.4.eh_proj.weight", four)
        assert place == behind("model.layers.6.eh_proj.weight", six)
        assert place.named({"model.layers.": 5}) == "model.layers.5.eh_proj.weight"
        assert behind("model.layers.4.eh_proj.weight", six) is None


class TestSlices:
    def test_they_come_along_behind_the_last_layer(self) -> None:
        recipe = slices(("a", 0, LAYERS), ("b", 2, LAYERS))
        outputs, warnings = composed(recipe)
        moved = f"model.layers.{LAYERS + 2}.eh_proj.weight"
        assert {s.tensor for s in ex.sources(outputs[moved])} == {f"{BEHIND}eh_proj.weight"}
        assert [s.model for s in ex.sources(outputs[moved])] == ["b"]
        assert f"{BEHIND}eh_proj.weight" not in outputs
        assert described(recipe)[0]["config"]["num_hidden_layers"] == LAYERS + 2
        assert len(warnings) == 1
        assert "behind layers of slices" in warnings[0]

    def test_a_range_beyond_the_real_layers_is_refused(self) -> None:
        with pytest.raises(UserError, match="beyond the 4 layers") as caught:
            described(slices(("a", 0, LAYERS + 1)))
        assert "come along" in caught.value.hint

    def test_a_module_of_its_own_follows_the_last_slice(self) -> None:
        for i, name in enumerate("ab"):
            save(name, i, "module")
        outputs, _ = composed(slices(("a", 0, 2), ("b", 0, LAYERS)))
        for name in ("mtp.fc.weight", f"mtp.layers.0.{QUERY}"):
            assert [s.model for s in ex.sources(outputs[name])] == ["b"]

    def test_those_behind_another_stack_stay_where_they_are(self) -> None:
        shapes = llama_shapes(LAYERS) | {f"other.layers.{i}.fc.weight": (4, 4) for i in (5, 6)}
        config = LLAMA | {"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1}
        save_model(Path("a"), random_tensors(shapes, 0), config=config)
        outputs, _ = composed(slices(("a", 0, 2)))
        assert {"other.layers.5.fc.weight", "other.layers.6.fc.weight"} < set(outputs)


class TestOnlySomeHaveThem:
    @pytest.mark.parametrize("method", ["task_arithmetic", "dare_ties"])
    @pytest.mark.parametrize("kind", ["behind", "module"])
    def test_the_bases_are_kept(self, method: str, kind: str) -> None:
        save("a", 0, kind)
        save("b", 1, "none")
        recipe = {
            "name": "out",
            "merge_method": method,
            "base_model": "a",
            "models": [{"model": "b", "parameters": {"weight": 0.5, "density": 0.5}}],
            "dtype": "float16",
        }
        outputs, warnings = composed(recipe)
        kept = "mtp.fc.weight" if kind == "module" else f"{BEHIND}eh_proj.weight"
        assert outputs[kept] == ex.Source("a", "model.safetensors", kept, "F16", (16, 32))
        assert len(warnings) == 1
        assert "keeps the layers for multi-token prediction of a" in warnings[0]

    def test_the_others_are_left_out_and_config_says_so(self) -> None:
        save("a", 0, "none")
        recipe = linear(*GRADIENT)
        outputs, warnings = composed(recipe)
        assert not any(name.startswith(BEHIND) for name in outputs)
        assert described(recipe)[0]["config"] == {"num_nextn_predict_layers": 0}
        assert len(warnings) == 1
        assert "leaves out" in warnings[0]
        assert described(recipe, silence=["mtp-layers"])[1] == []

    def test_a_real_layer_is_none_of_them(self) -> None:
        """One model has five layers, the other four and one for prediction."""
        save("b", 1, num_hidden_layers=LAYERS + 1, num_nextn_predict_layers=0)
        with pytest.raises(UserError, match=r"model\.layers\.4") as caught:
            described(linear(*GRADIENT))
        assert "'a' has 4 layers; 'b' has 5 layers." in caught.value.hint


class TestNextStages:
    def test_a_document_that_others_read_counts_alike(self) -> None:
        save("b", 1, "none")
        first = linear({"model": "a", "parameters": {"weight": 1}}) | {"name": "mid"}
        last = linear({"model": "mid", "parameters": {"weight": [1, 0]}}, GRADIENT[1])
        outputs, _ = composed(first, last)
        assert weights(outputs[f"model.layers.{LAYERS - 1}.{QUERY}"]) == {"b": 1.0}
        assert weights(outputs[f"{BEHIND}{QUERY}"]) == {"a": 1.0}


class TestTokenizer:
    def test_layers_with_embeddings_of_their_own_do_not_follow_a_tokenizer(self) -> None:
        for seed, (name, words) in enumerate((("a", ["dog"]), ("b", ["cat"]))):
            folder = tokenized(Path(name), seed, words)
            (file,) = folder.glob("*.safetensors")
            tensors = load_file(file)
            layer = {n: x for n, x in tensors.items() if n.startswith("model.layers.1.")}
            tensors |= {n.replace(".1.", ".2."): x.clone() for n, x in layer.items()}
            tensors["model.layers.2.embed_tokens.weight"] = torch.ones(
                tensors["model.embed_tokens.weight"].shape, dtype=torch.float16
            )
            save_file(tensors, file)
            config = load_json(folder / "config.json") | {"num_nextn_predict_layers": 1}
            (folder / "config.json").write_text(json.dumps(config))
        recipe = linear(*GRADIENT)
        assert f"model.layers.2.{QUERY}" in composed(recipe)[0]
        outputs, warnings = composed(recipe | {"tokenizer_source": "union"})
        assert f"model.layers.2.{QUERY}" not in outputs
        assert any("do not follow the tokenizer" in w for w in warnings)
