"""Slices, modules, tied embeddings and optional tensors in the plan; config.json of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.models import LLAMA, llama, llama_shapes, random_tensors, save_model
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.package.card_coefficients import describe_coefficients
from shardmerge.plan.decide import load_plan
from shardmerge.plan.description import BuildDescription
from shardmerge.plan.files import description_path, load_spec
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.recipe.settings import load_settings

STACK = """\
name: out
merge_method: passthrough
slices:
  - sources:
      - model: a
        layer_range: [0, 4]
  - sources:
      - model: b
        layer_range: [2, 6]
        parameters:
          scale:
            - filter: o_proj
              value: 0
            - value: 1
dtype: float16
"""
HALVES = {
    "name": "out",
    "merge_method": "linear",
    "models": [{"model": m, "parameters": {"weight": 1}} for m in ("a", "tied")],
    "dtype": "float16",
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        llama(Path(name), seed=i, layers=6, files=4)
    return tmp_path


def plan(recipe: Any, **config: Any) -> Any:
    text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False)
    Path("recipe.yaml").write_text(text)
    settings = load_settings({"recipes": ["recipe.yaml"], **config})
    return load_plan(settings, say=lambda line: None)


def described(found: Any) -> Any:
    (build,) = found.builds.values()
    return json.loads(Path(description_path(build.digest)).read_text())


def tensors(found: Any) -> dict[str, ex.Expression]:
    (build,) = found.builds.values()
    return {t.name: t.expression for job in build.shards for t in load_spec(job.digest).tensors}


def sources_of(expression: ex.Expression) -> list[tuple[str, str]]:
    return [(s.model, s.tensor) for s in ex.sources(expression)]


def change_config(folder: str, **values: Any) -> None:
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class TestLanguage:
    @pytest.mark.parametrize(
        ("old", "new", "line", "says"),
        [
            ("layer_range: [0, 4]", "layer_range: [4, 0]", 6, "two whole numbers"),
            ("layer_range: [0, 4]", "layer_range: 4", 6, "two whole numbers"),
            ("layer_range: [0, 4]", "layer_range: [0, -1]", 6, "none is counted from the end"),
            ("layer_range: [0, 4]", "layer_range: [a, 4]", 6, "two whole numbers"),
            ("layer_range: [0, 4]", "layer_range: [0, 1.5]", 6, "two whole numbers"),
            ("layer_range: [0, 4]", "layer_rang: [0, 4]", 6, "'layer_range'"),
            ("        layer_range: [0, 4]\n", "", 5, "has no `layer_range`"),
            ("- sources:", "- source:", 4, "'sources'"),
            ("slices:", "models: []\nslices:", 1, "exactly one of"),
            ("passthrough", "slerp\nbase_model: c", 5, "does not list its base model 'c'"),
        ],
    )
    def test_place_and_hint(self, old: str, new: str, line: int, says: str) -> None:
        with pytest.raises(UserError) as caught:
            parse_recipe(STACK.replace(old, new, 1), "r.yaml")
        assert says in str(caught.value)
        assert caught.value.where == f"r.yaml:{line}"

    def test_lengths_differ(self) -> None:
        text = STACK.replace(
            "        layer_range: [0, 4]\n",
            "        layer_range: [0, 4]\n      - model: b\n        layer_range: [0, 3]\n",
        ).replace("passthrough", "linear")
        with pytest.raises(UserError, match=r"4 layers of 'a' but 3 of 'b'") as caught:
            parse_recipe(text, "r.yaml")
        assert caught.value.where == "r.yaml:7"

    def test_a_slice_s_base_is_a_source_of_the_recipe(self) -> None:
        document = yaml.safe_load(STACK)
        document["merge_method"] = "linear"
        document["slices"][0]["base_model"] = "c"
        recipe = parse_recipe(yaml.safe_dump(document), "r.yaml")
        assert [str(s) for s in recipe.sources] == ["c", "a", "b"]

    def test_modules(self) -> None:
        document = yaml.safe_load(STACK)
        document["modules"] = {"default": {"slices": document.pop("slices")}}
        (module,) = parse_recipe(yaml.safe_dump(document), "r.yaml").stages["out"].modules
        assert module.name == "default" and len(module.slices) == 2

    def test_module_of_nothing(self) -> None:
        document = yaml.safe_load(STACK)
        del document["slices"]
        document["modules"] = {"default": {"parameters": {"scale": 1}}}
        with pytest.raises(UserError, match="give exactly one of `models`, `slices`"):
            parse_recipe(yaml.safe_dump(document), "r.yaml")


class TestLayers:
    def test_renumbered(self, work: Path) -> None:
        found = tensors(plan(STACK))
        q = "self_attn.q_proj.weight"
        for i in range(4):
            assert sources_of(found[f"model.layers.{i}.{q}"]) == [("a", f"model.layers.{i}.{q}")]
            name = f"model.layers.{i + 4}.{q}"
            assert sources_of(found[name]) == [("b", f"model.layers.{i + 2}.{q}")]
        assert max(int(n.split(".")[2]) for n in found if ".layers." in n) == 7

    def test_first_and_last_slice_give_what_is_outside(self, work: Path) -> None:
        found = tensors(plan(STACK))
        assert sources_of(found["model.embed_tokens.weight"]) == [
            ("a", "model.embed_tokens.weight")
        ]
        assert sources_of(found["model.norm.weight"]) == [("b", "model.norm.weight")]
        assert sources_of(found["lm_head.weight"]) == [("b", "lm_head.weight")]

    def test_scale_of_zero_is_zero_and_reads_nothing(self, work: Path) -> None:
        found = tensors(plan(STACK))
        zero = found["model.layers.4.self_attn.o_proj.weight"]
        assert zero == ex.Zero((16, 16))
        assert isinstance(found["model.layers.3.self_attn.o_proj.weight"], ex.Source)

    def test_gradient_starts_again_with_every_slice(self, work: Path) -> None:
        document = yaml.safe_load(STACK)
        document["merge_method"] = "linear"
        document["parameters"] = {"normalize": False, "weight": [0.25, 0.75]}
        for piece, model in zip(document["slices"], "ba", strict=True):
            (source,) = piece["sources"]
            source.pop("parameters", None)
            piece["sources"].append({"model": model, "layer_range": source["layer_range"]})
        found = tensors(plan(document))
        weights = [found[f"model.layers.{i}.mlp.up_proj.weight"].terms[0][0] for i in range(8)]
        thirds = [0.25, 0.25 + 0.5 / 3, 0.25 + 1 / 3, 0.75]
        assert weights == pytest.approx(thirds * 2)

    def test_filters_see_the_source_s_layer(self, work: Path) -> None:
        document = yaml.safe_load(STACK)
        rule = {"filter": "layers.5.", "value": 0.5}
        document["slices"][1]["sources"][0]["parameters"]["scale"] = [rule, {"value": 1}]
        found = tensors(plan(document))
        scaled = {n for n, e in found.items() if isinstance(e, ex.Linear)}
        assert scaled and all(n.startswith("model.layers.7.") for n in scaled)

    def test_layers_that_are_not_there(self, work: Path) -> None:
        with pytest.raises(UserError, match="ends beyond the 6 layers of 'b'") as caught:
            plan(STACK.replace("[2, 6]", "[2, 7]"))
        assert caught.value.where == "recipe.yaml:8"

    def test_stages_of_slices(self, work: Path) -> None:
        outer = {
            "name": "outer",
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": "out", "layer_range": [3, 6]}]}],
        }
        found = plan(STACK + "---\n" + yaml.safe_dump(outer))
        q = "model.layers.{}.self_attn.q_proj.weight"
        pairs = [sources_of(tensors(found)[q.format(i)])[0] for i in range(3)]
        assert pairs == [("a", q.format(3)), ("b", q.format(2)), ("b", q.format(3))]
        assert described(found)["config"] == {"num_hidden_layers": 3}


class TestDeltas:
    def test_stored_or_not_is_one_identity(self, work: Path) -> None:
        pieces = [
            {
                "sources": [
                    {"model": m, "layer_range": [i, i + 3], "parameters": {"weight": 0.5}}
                    for m in ("a", "b")
                ]
            }
            for i in (0, 2)
        ]
        document = {"name": "out", "merge_method": "task_arithmetic", "base_model": "a"}
        document |= {"slices": pieces, "dtype": "float16"}
        fused, stored = plan(document, deltas="fuse"), plan(document, deltas="store")
        jobs = [[j.digest for j in p.builds["out"].shards] for p in (stored, fused)]
        assert jobs[0] == jobs[1] and stored.deltas and not fused.deltas
        # layer 2 is in both slices and stored once
        names = [t.expression.finetuned.tensor for j in stored.deltas
                 for t in load_spec(j.digest).tensors]  # fmt: skip
        assert len(names) == len(set(names)) == 5 * 9 + 3


class TestShards:
    def test_follow_the_files_of_the_slices(self, work: Path) -> None:
        shards = described(plan(STACK))["shards"]
        layers = [
            sorted({int(n.split(".")[2]) for n in shard["tensors"] if ".layers." in n})
            for shard in shards
        ]
        assert layers[0][0] == 0 and layers[-1][-1] == 7
        assert len(shards) == len({shard["file"] for shard in shards})
        # b's layers 2 to 5 are in three of its files
        assert 4 < len(shards) <= 7

    def test_a_whole_file_is_a_copy(self, work: Path) -> None:
        found = plan(STACK)
        (build,) = found.builds.values()
        first = load_spec(build.shards[0].digest)
        assert all(isinstance(t.expression, ex.Source) for t in first.tensors)
        names = {t.name for t in first.tensors}
        assert names == {t.expression.tensor for t in first.tensors}

    def test_little_slices_share_files(self, work: Path) -> None:
        document = yaml.safe_load(STACK)
        document["slices"] = [
            {"sources": [{"model": "ab"[i % 2], "layer_range": [i, i + 1]}]} for i in range(6)
        ] * 3
        shards = described(plan(document))["shards"]
        assert len(shards) < 18

    def test_size(self, work: Path) -> None:
        sizes = [job.bytes_written for b in plan(STACK, max_shard_size="5KB").builds.values()
                 for job in b.shards]  # fmt: skip
        assert max(sizes) <= 5000


class TestConfig:
    def test_number_of_layers(self, work: Path) -> None:
        assert described(plan(STACK))["config"] == {"num_hidden_layers": 8}

    def test_same_layers_change_nothing(self, work: Path) -> None:
        document = yaml.safe_load(STACK)
        document["slices"] = [{"sources": [{"model": "a", "layer_range": [0, 6]}]}]
        assert described(plan(document))["config"] == {}

    def test_lists_of_layers(self, work: Path) -> None:
        for i, name in enumerate("ab"):
            types = [f"{name}{n}" for n in range(6)]
            change_config(name, layer_types=types, mlp_only_layers=[0, 3 + i], eos_token_id=[1] * 6)
        assert described(plan(STACK))["config"] == {
            "num_hidden_layers": 8,
            "layer_types": ["a0", "a1", "a2", "a3", "b2", "b3", "b4", "b5"],
            "mlp_only_layers": [0, 3, 5],
        }

    def test_first_layers(self, work: Path) -> None:
        change_config("a", first_k_dense_replace=3, max_window_layers=6)
        assert described(plan(STACK.replace("[2, 6]", "[3, 6]")))["config"] == {
            "num_hidden_layers": 7,
            "max_window_layers": 7,
        }
        with pytest.raises(UserError, match="`first_k_dense_replace: 3` cannot be kept"):
            plan(STACK)

    def test_objects_by_the_numbers_of_layers(self, work: Path) -> None:
        for name in "ab":
            wide = {str(i): {"head_dim": name + str(i)} for i in (1, 5)}
            change_config(name, per_layer_config=wide, id2label={"0": "no", "1": "yes"})
        assert described(plan(STACK))["config"] == {
            "num_hidden_layers": 8,
            "per_layer_config": {"1": {"head_dim": "a1"}, "7": {"head_dim": "b5"}},
        }

    @pytest.mark.parametrize("value", [{"1": "x", "rest": "y"}, "x", None])
    def test_an_object_of_other_keys_stays(
        self, work: Path, value: dict[str, Any] | str | None
    ) -> None:
        change_config("a", per_layer_config=value)
        assert described(plan(STACK))["config"] == {"num_hidden_layers": 8}

    def test_last_layers(self, work: Path) -> None:
        change_config("a", num_kv_shared_layers=3)
        with pytest.raises(UserError, match="`num_kv_shared_layers: 3` cannot be kept"):
            plan(STACK)
        fewer = STACK.replace("[0, 4]", "[0, 2]").replace("[2, 6]", "[4, 6]")
        assert described(plan(fewer))["config"] == {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
        }

    @pytest.mark.parametrize("tensor", ["embed_tokens_per_layer", "per_layer_model_projection"])
    def test_a_tensor_with_a_share_for_each_layer_does_not_follow(
        self, work: Path, tensor: str
    ) -> None:
        for i, name in enumerate("ab"):
            shapes = llama_shapes(6) | {f"model.{tensor}.weight": (48, 16)}
            save_model(Path(name), random_tensors(shapes, i), files=4)
        with pytest.raises(UserError, match="a share for each of its 6 layers"):
            plan(STACK)
        whole = STACK.replace("[0, 4]", "[0, 2]")
        assert described(plan(whole))["config"] == {}

    def test_unknown_key(self, work: Path) -> None:
        config = {k: v for k, v in LLAMA.items() if k != "num_hidden_layers"}
        Path("a/config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
        with pytest.raises(UserError, match="nothing in it says that there are 6 layers"):
            plan(STACK)


class TestTied:
    @pytest.fixture
    def tied(self, work: Path) -> None:
        shapes = llama_shapes(6)
        del shapes["lm_head.weight"]
        save_model(Path("tied"), random_tensors(shapes, 3))
        change_config("tied", tie_word_embeddings=True)

    def test_input_embedding_stands_for_the_output_embedding(self, tied: None) -> None:
        head = tensors(plan(HALVES))["lm_head.weight"]
        assert sources_of(head) == [
            ("a", "lm_head.weight"),
            ("tied", "model.embed_tokens.weight"),
        ]

    @pytest.mark.parametrize(
        ("t", "tie"),
        [({"value": 0.5}, {}), ({"filter": "lm_head", "value": 0}, {"tie_word_embeddings": False})],
    )
    def test_a_stored_head(self, work: Path, t: dict[str, Any], tie: dict[str, Any]) -> None:
        """Files of tied models may hold the head all the same."""
        for name in ("a", "b"):
            change_config(name, tie_word_embeddings=True)
        recipe = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}]}
        recipe |= {"name": "out", "parameters": {"t": [t, {"value": 0.5}]}}
        assert described(plan(recipe))["config"] == tie

    @pytest.mark.parametrize("order", ["old new", "new old"])
    @pytest.mark.parametrize(
        "copy",
        ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head", "cls.predictions.decoder"],
    )
    def test_copies_of_the_embedding(self, work: Path, order: str, copy: str) -> None:
        """Old files have the embedding again where new ones have it once."""
        shapes = {"shared.weight": (32, 16), "encoder.block.0.layer.weight": (16, 16)}
        config = {"model_type": "x", "num_layers": 1}
        save_model(Path("new"), random_tensors(shapes, 1), config=config)
        shapes[f"{copy}.weight"] = (32, 16)
        save_model(Path("old"), random_tensors(shapes, 2), config=config)
        models = [{"model": m, "parameters": {"weight": 1}} for m in order.split()]
        made = tensors(plan({"merge_method": "linear", "models": models}))[f"{copy}.weight"]
        assert sorted(sources_of(made)) == [("new", "shared.weight"), ("old", f"{copy}.weight")]

    def test_a_stored_head_of_an_untied_model(self, work: Path) -> None:
        change_config("a", tie_word_embeddings=True)
        recipe = HALVES | {"models": [{"model": m, "parameters": {"weight": 1}} for m in "ab"]}
        assert described(plan(recipe))["config"] == {"tie_word_embeddings": False}

    @pytest.mark.parametrize("first", ["a", "tied"])
    def test_the_result_is_untied(self, tied: None, first: str) -> None:
        models = sorted(HALVES["models"], key=lambda m: m["model"] != first)
        found = plan(HALVES | {"models": models})
        assert described(found)["config"] == {"tie_word_embeddings": False}
        assert "lm_head.weight" in tensors(found)

    def test_tied_models_stay_tied(self, tied: None) -> None:
        models = [{"model": m, "parameters": {"weight": 1}} for m in ("tied", "tied2")]
        Path("tied2").symlink_to("tied")
        found = plan(HALVES | {"models": models})
        assert described(found)["config"] == {} and "lm_head.weight" not in tensors(found)


class TestOptional:
    bias = "model.layers.2.self_attn.q_proj.bias"

    def recipe(self, method: str, base: str | None = None, **parameters: Any) -> dict:
        models = [{"model": m, "parameters": {"weight": 1}} for m in ("a", "biased")]
        made = {"name": "out", "merge_method": method, "models": models, "dtype": "float16"}
        made |= {"base_model": base} if base else {}
        return made | {"parameters": parameters}

    @pytest.fixture(autouse=True)
    def biased(self, work: Path) -> None:
        shapes = llama_shapes(6) | {self.bias: (16,)}
        save_model(Path("biased"), random_tensors(shapes, 3))

    def test_a_bias_is_merged_from_those_that_have_it(self) -> None:
        assert sources_of(tensors(plan(self.recipe("linear")))[self.bias]) == [
            ("biased", self.bias)
        ]

    def test_a_base_that_has_it_alone(self) -> None:
        found = tensors(plan(self.recipe("task_arithmetic", "biased")))
        assert sources_of(found[self.bias]) == [("biased", self.bias)]

    def test_a_base_that_lacks_it(self) -> None:
        with pytest.raises(UserError, match="cannot do without it"):
            plan(self.recipe("task_arithmetic", "a"))

    def test_a_method_of_two_copies_what_one_has(self) -> None:
        found = tensors(plan(self.recipe("slerp", "a", t=0.5)))
        assert sources_of(found[self.bias]) == [("biased", self.bias)]


class TestSpelling:
    def test_a_model_saved_without_its_head_s_prefix(self, work: Path) -> None:
        shapes = {n.removeprefix("model."): s for n, s in llama_shapes(6).items()}
        del shapes["lm_head.weight"]
        save_model(Path("bare"), random_tensors(shapes, 3))
        slices = [{"sources": [{"model": m, "layer_range": [1, 3]}]} for m in ("a", "bare")]
        found = tensors(plan({"merge_method": "passthrough", "slices": slices}))
        name = "layers.2.mlp.up_proj.weight"
        assert sources_of(found["model.layers.3.mlp.up_proj.weight"]) == [("bare", name)]

    def test_layer_norms_of_the_first_implementations(self, work: Path) -> None:
        shapes = llama_shapes(6)
        old = {f"bert.embeddings.LayerNorm.{kind}": (16,) for kind in ("gamma", "beta")}
        new = {f"bert.embeddings.LayerNorm.{kind}": (16,) for kind in ("weight", "bias")}
        for folder, more in (("new", new), ("old", old)):
            save_model(Path(folder), random_tensors(shapes | more, 3))
        models = [{"model": m, "parameters": {"weight": 1}} for m in ("new", "old")]
        found = tensors(plan(HALVES | {"models": models}))
        assert sources_of(found["bert.embeddings.LayerNorm.weight"]) == [
            ("new", "bert.embeddings.LayerNorm.weight"),
            ("old", "bert.embeddings.LayerNorm.gamma"),
        ]


class TestModules:
    vision = "vision_tower.encoder.layers.{}.mlp.fc1.weight"
    projector = "multi_modal_projector.linear_1.weight"

    @pytest.fixture(autouse=True)
    def models(self, work: Path) -> None:
        shapes = {f"language_model.{name}": shape for name, shape in llama_shapes(4).items()}
        shapes |= {self.vision.format(i): (16, 16) for i in range(3)} | {self.projector: (16, 16)}
        config = {"model_type": "llava", "text_config": {"num_hidden_layers": 4}}
        config |= {"vision_config": {"num_hidden_layers": 3}}
        for i, name in enumerate(("v", "w")):
            save_model(Path(name), random_tensors(shapes, i), files=2, config=config)

    def recipe(self, **modules: Any) -> dict:
        return {"name": "out", "merge_method": "passthrough", "modules": modules}

    @property
    def stacked(self) -> dict:
        pieces = (("v", [0, 3]), ("w", [1, 4]))
        return {
            "slices": [{"sources": [{"model": m, "layer_range": layers}]} for m, layers in pieces]
        }

    @property
    def whole(self) -> dict:
        return {"models": [{"model": "w"}]}

    def test_each_has_its_own_layers(self) -> None:
        found = plan(
            self.recipe(
                text_decoder=self.stacked, vision_tower=self.whole, multi_modal_projector=self.whole
            )
        )
        made = tensors(found)
        name = "language_model.model.layers.{}.mlp.up_proj.weight"
        assert sources_of(made[name.format(5)]) == [("w", name.format(3))]
        assert sources_of(made[self.vision.format(2)]) == [("w", self.vision.format(2))]
        assert self.vision.format(3) not in made
        assert described(found)["config"] == {"text_config.num_hidden_layers": 6}

    def test_by_the_stacks_prefixes(self) -> None:
        text, vision = "language_model.model.layers", "vision_tower.encoder.layers"
        slices = [{"sources": [{"model": "w", "layer_range": [0, 2]}]}]
        found = plan(
            self.recipe(**{text: self.whole, vision: {"slices": slices}, "default": self.whole})
        )
        assert described(found)["config"] == {"vision_config.num_hidden_layers": 2}
        assert len(tensors(found)) == len(llama_shapes(4)) + 2 + 1

    def test_all_must_be_mentioned(self) -> None:
        with pytest.raises(UserError, match=r"(?s)leaves out 4 tensors.*vision_tower"):
            plan(self.recipe(text_decoder=self.stacked))

    def test_unknown(self) -> None:
        with pytest.raises(UserError, match=r"(?s)no module 'text_decoders'.*'text_decoder'"):
            plan(self.recipe(text_decoders=self.stacked))

    def test_slices_without_modules(self) -> None:
        with pytest.raises(UserError, match="several modules: text_decoder, multi_modal_projector"):
            plan({"name": "out", "merge_method": "passthrough"} | self.stacked)

    def test_a_model_of_one_module(self) -> None:
        slices = {"slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}]}
        assert tensors(plan(self.recipe(default=slices)))
        with pytest.raises(UserError, match=r"(?s)no module 'text_decoder'.*default"):
            plan(self.recipe(text_decoder=slices))

    def test_parameters_of_a_module(self) -> None:
        sources = [{"model": m, "layer_range": [0, 3]} for m in ("v", "w")]
        weights = {"parameters": {"weight": 0.25, "normalize": False}}
        document = self.recipe(
            text_decoder={"slices": [{"sources": sources}]} | weights,
            vision_tower={"models": [{"model": "v"}, {"model": "w", "parameters": {"weight": 2}}]},
            multi_modal_projector={"models": [{"model": "v"}, {"model": "w"}]},
        )
        document |= {"merge_method": "linear", "parameters": {"weight": 1}}
        made = tensors(plan(document))
        text = made["language_model.model.layers.1.mlp.up_proj.weight"]
        assert [c for c, _ in text.terms] == [0.25, 0.25]
        assert [c for c, _ in made[self.projector].terms] == [0.5, 0.5]
        assert [c for c, _ in made[self.vision.format(0)].terms] == pytest.approx([1 / 3, 2 / 3])


class TestCard:
    def test_tells_of_whom_the_tensors_are(self, work: Path) -> None:
        text = describe_coefficients(BuildDescription.from_json(described(plan(STACK)), "d"))
        assert "37 of 75 tensors are those of `a`, 34 those of `b`; the other 4 are" in text
        assert "Coefficient of `0`" not in text
