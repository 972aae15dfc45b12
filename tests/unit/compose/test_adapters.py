"""LoRA adapters: what their tensors do, and what is refused, before anything is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from helpers.adapter_cases import PREFIX, factors, write_adapter
from helpers.hub_cases import ONE_FILE, add_model
from helpers.loopback_hub import LoopbackHub
from helpers.models import llama, llama_shapes, random_tensors, save_model
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.base.identities import Identities
from shardmerge.base.numerics import FLOAT32, MERGEKIT, Numerics
from shardmerge.compose.adapters import Update, adapter_updates
from shardmerge.compose.composer import Composer
from shardmerge.compose.models import Entry
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.recipe.references import parse_reference
from shardmerge.report.explain import explain
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor
from shardmerge.sources.locking import lock_adapter, lock_folder, lock_hub

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
TABLE = {
    f"{Q}.weight": Entry("F16", (8, 8)),
    f"{Q}.bias": Entry("F16", (8,)),
    f"{DOWN}.weight": Entry("F16", (8, 12)),
    "model.embed_tokens.weight": Entry("F16", (20, 8)),
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def locked(shapes: dict[str, tuple[int, ...]], **config: Any) -> LockedSource:
    """Return the lock of an adapter with tensors of those shapes, the prefix left out."""
    tensors = {
        (name if name.startswith("!") else PREFIX + name).removeprefix("!"): LockedTensor(
            "adapter_model.safetensors", "F32", shape, 0, 4 * math.prod(shape)
        )
        for name, shape in shapes.items()
    }
    return LockedSource("local", None, None, None, CONFIG | config, {}, tensors, "adapter")


def linear(module: str, out: int, in_: int, rank: int = 2) -> dict[str, tuple[int, ...]]:
    return {f"{module}.lora_A.weight": (rank, in_), f"{module}.lora_B.weight": (out, rank)}


def updates(
    shapes: dict[str, tuple[int, ...]], table: Any = TABLE, **config: Any
) -> dict[str, Update]:
    return adapter_updates("o/lora", locked(shapes, **config), table, "o/model")


def told(shapes: dict[str, tuple[int, ...]], table: Any = TABLE, **config: Any) -> str:
    with pytest.raises(UserError) as caught:
        updates(shapes, table, **config)
    assert "o/lora" in str(caught.value)
    return str(caught.value)


class TestParameters:
    """Parameters that are adapted by themselves, as those of fused experts are."""

    EXPERTS = "model.layers.0.mlp.experts"
    TABLE: ClassVar = {
        f"{EXPERTS}.gate_up_proj": Entry("F16", (3, 8, 24)),
        f"{EXPERTS}.down_proj": Entry("F16", (3, 12, 8)),
    }
    CONFIG: ClassVar = {"target_parameters": ["experts.gate_up_proj", "0.mlp.experts.down_proj"]}

    def shapes(self, rank: int = 6) -> dict[str, tuple[int, ...]]:
        inner = linear(f"{self.EXPERTS}.base_layer", 24, 8, rank)
        return inner | linear(self.EXPERTS, 8, 12, rank)

    def test_the_first_is_the_innermost(self) -> None:
        found = updates(self.shapes(), self.TABLE, **self.CONFIG)
        assert found.keys() == self.TABLE.keys()
        for name, update in found.items():
            assert (update.experts, update.transposed, update.scale) == (3, True, 3)
            product = ex.LowRank(update.b, update.a, 3, True, "F32", 3)
            assert product.shape == self.TABLE[name].shape

    def test_a_rank_is_that_of_one_expert(self) -> None:
        text = told(self.shapes(2), self.TABLE, **self.CONFIG)
        assert "has rank 2, but adapter_config.json says 2 for each of 3 experts" in text

    def test_no_experts(self) -> None:
        table = {f"{self.EXPERTS}.down_proj": Entry("F16", (0, 12, 8))}
        one = {"target_parameters": ["experts.down_proj"]}
        assert "has rank 0" in told(linear(self.EXPERTS, 8, 12, 0), table, **one)

    def test_as_many_as_the_configuration_names(self) -> None:
        one = {"target_parameters": ["experts.down_proj"]}
        assert "adapts 2 parameters" in told(self.shapes(), self.TABLE, **one)

    def test_dora(self) -> None:
        extra = {f"{self.EXPERTS}.lora_magnitude_vector": (8,)}
        assert "has DoRA" in told(self.shapes() | extra, self.TABLE, **self.CONFIG)

    @pytest.mark.parametrize("value", ["experts.down_proj", [1], {"a": 1}])
    def test_a_list_of_names(self, value: Any) -> None:
        found = told(self.shapes(), self.TABLE, target_parameters=value)
        assert "target_parameters" in found and "no list of names" in found

    def test_a_model_that_has_them_one_by_one(self) -> None:
        table = {f"{self.EXPERTS}.{i}.down_proj.weight": Entry("F16", (8, 12)) for i in range(3)}
        one = {"target_parameters": ["experts.down_proj"]}
        assert "one by one" in told(linear(self.EXPERTS, 8, 12, 6), table, **one)

    def test_a_stack_that_is_no_parameter_of_them(self) -> None:
        table = {f"{self.EXPERTS}.weight": Entry("F16", (3, 8, 12))}
        assert "make a matrix of [8, 12]" in told(linear(self.EXPERTS, 8, 12, 6), table)


class TestScale:
    def test_alpha_over_rank(self) -> None:
        assert updates(linear(Q, 8, 8))[f"{Q}.weight"].scale == 3

    def test_rslora(self) -> None:
        found = updates(linear(Q, 8, 8), use_rslora=True)
        assert found[f"{Q}.weight"].scale == 6 / math.sqrt(2)

    @pytest.mark.parametrize(
        "pattern", ["down_proj", "mlp.down_proj", "layers.1.mlp.down_proj", r"layers\.\d+\.mlp\..*"]
    )
    def test_patterns_match_the_end_of_a_name(self, pattern: str) -> None:
        shapes = linear(Q, 8, 8) | linear(DOWN, 8, 12, rank=4)
        found = updates(shapes, rank_pattern={pattern: 4}, alpha_pattern={pattern: 1})
        assert found[f"{Q}.weight"].scale == 3
        assert found[f"{DOWN}.weight"].scale == 0.25

    def test_the_first_pattern_wins(self) -> None:
        found = updates(linear(Q, 8, 8), alpha_pattern={"q_proj": 2, "self_attn.q_proj": 4})
        assert found[f"{Q}.weight"].scale == 1

    def test_rank_that_is_not_the_configuration_s(self) -> None:
        assert "has rank 3, but adapter_config.json says 2" in told(linear(Q, 8, 8, rank=3))

    @pytest.mark.parametrize(
        "config",
        [{"r": None}, {"r": 0}, {"r": 1.5}, {"lora_alpha": "much"}, {"lora_alpha": math.nan},
         {"rank_pattern": {"(": 3}}],
    )  # fmt: skip
    def test_no_numbers(self, config: dict[str, Any]) -> None:
        assert told(linear(Q, 8, 8), **config)


class TestTensors:
    def test_what_was_there_before_training_is_left(self) -> None:
        """peft saves it beside the trained weights of a layer with a resized vocabulary."""
        parts = ("modules_to_save.weight", "original_module.weight")
        found = updates({f"model.embed_tokens.{part}": (20, 8) for part in parts})
        (update,) = found.values()
        assert update.replacement.tensor.endswith("embed_tokens.modules_to_save.weight")

    def test_embedding(self) -> None:
        shapes = {
            "model.embed_tokens.lora_embedding_A": (2, 20),
            "model.embed_tokens.lora_embedding_B": (8, 2),
        }
        update = updates(shapes)["model.embed_tokens.weight"]
        assert update.embedding and update.transposed
        shapes["model.embed_tokens.lora_embedding_A"] = (2, 21)
        assert "[21, 8]" in told(shapes)

    def test_replacements(self) -> None:
        shapes = linear(Q, 8, 8) | {
            f"{Q}.base_layer.bias": (8,),
            "model.embed_tokens.weight": (20, 8),
            f"{Q}.base_layer.weight": (8, 8),
        }
        found = updates(shapes)
        assert found[f"{Q}.bias"].replacement.tensor == f"{PREFIX}{Q}.base_layer.bias"
        assert found["model.embed_tokens.weight"].b is None
        both = found[f"{Q}.weight"]
        assert both.replacement and both.b

    def test_lora_bias(self) -> None:
        found = updates(linear(Q, 8, 8) | {f"{Q}.lora_B.bias": (8,)})
        assert found[f"{Q}.bias"].bias and found[f"{Q}.bias"].scale == 3
        without = {name: entry for name, entry in TABLE.items() if "bias" not in name}
        assert "does not have" in told(linear(Q, 8, 8) | {f"{Q}.lora_B.bias": (8,)}, without)

    def test_transposed_layers(self) -> None:
        table = {
            "h.0.attn.c_attn.weight": Entry("F16", (8, 24)),
            "h.0.attn.c_proj.weight": Entry("F16", (8, 8)),
        }
        shapes = linear("transformer.h.0.attn.c_attn", 24, 8)
        shapes |= linear("transformer.h.0.attn.c_proj", 8, 8)
        found = updates(shapes, table)  # also: the checkpoint lacks the prefix
        assert [u.transposed for u in found.values()] == [True, True]
        square = linear("transformer.h.0.attn.c_proj", 8, 8)
        for flag in (True, False):
            (update,) = updates(square, table, fan_in_fan_out=flag).values()
            assert update.transposed == flag

    def test_a_checkpoint_with_a_longer_prefix(self) -> None:
        table = {f"language_model.{name}": entry for name, entry in TABLE.items()}
        assert set(updates(linear(Q, 8, 8), table)) == {f"language_model.{Q}.weight"}

    @pytest.mark.parametrize(
        ("shapes", "parts"),
        [
            (linear("model.layers.0.self_attn.qq_proj", 8, 8), ["qq_proj.weight", "q_proj"]),
            (linear(Q, 9, 8), [f"{PREFIX}{Q}.lora_B.weight", f"{Q}.weight", "[9, 8]", "[8, 8]"]),
            ({f"{Q}.lora_A.weight": (2, 8)}, ["lora_A", "no lora_B"]),
            ({f"{Q}.lora_A.weight": (2, 8), f"{Q}.lora_B.weight": (8, 3)}, ["does not fit"]),
            (
                {f"{Q}.lora_A.weight": (2, 8, 1), f"{Q}.lora_B.weight": (8, 2, 1)},
                ["convolutions"],
            ),
            (linear(Q, 8, 8) | {"model.embed_tokens.weight": (21, 8)}, ["[21, 8]", "[20, 8]"]),
            (linear(Q, 8, 8) | {"lm_head.weight": (20, 8)}, ["lm_head.weight", "tied"]),
            (linear(Q, 8, 8) | {f"{Q}.lora_C.weight": (1,)}, ["lora_C", "no kind"]),
            ({"!model.q_proj.lora_A.weight": (2, 8)}, ["does not begin with"]),
            ({}, ["no tensors"]),
            (linear(Q, 8, 8) | {f"{Q}.lora_magnitude_vector": (7,)}, ["8 elements"]),
        ],
    )
    def test_refused_with_names(self, shapes: dict[str, Any], parts: list[Any]) -> None:
        message = told(shapes)
        assert all(part in message for part in parts), message


class TestKinds:
    @pytest.mark.parametrize("kind", ["IA3", "LOHA", "PROMPT_TUNING", None])
    def test_other_adapters(self, kind: str | None) -> None:
        message = told(linear(Q, 8, 8), peft_type=kind)
        assert f"of type {kind!r}; only LORA adapters" in message

    @pytest.mark.parametrize(
        "config",
        [
            {"layer_replication": [[0, 1]]},
            {"trainable_token_indices": [1, 2]},
            {"use_qalora": True},
            {"init_lora_weights": "pissa_niter_4"},
            {"init_lora_weights": "olora"},
        ],
    )
    def test_what_is_not_exact(self, config: dict[str, Any]) -> None:
        assert next(iter(config)) in told(linear(Q, 8, 8), **config)

    @pytest.mark.parametrize("beginning", [True, False, "gaussian", "eva"])
    def test_plain_beginnings(self, beginning: bool | str) -> None:
        assert updates(linear(Q, 8, 8), init_lora_weights=beginning)


class Recipes:
    """A base model, two adapters for it, and recipes of them."""

    def __init__(self, folder: Path) -> None:
        base = llama(folder / "base", 1, layers=2)
        modules = {
            "model.layers.0.self_attn.q_proj": (16, 16),
            "model.layers.1.mlp.up_proj": (24, 16),
        }
        write_adapter(folder / "one", factors(modules))
        write_adapter(
            folder / "two", factors({"model.layers.0.self_attn.q_proj": (16, 16)}, seed=4)
        )
        identities = Identities(folder / "cache.json")
        self.lock = Lock(
            {
                "base": lock_folder(base, "base", identities),
                "one": lock_adapter(folder / "one", "one", identities),
                "two": lock_adapter(folder / "two", "two", identities),
            }
        )

    def outputs(self, text: str, numerics: Numerics = FLOAT32) -> dict[str, ex.Expression]:
        recipe = parse_recipe(f"name: out\n{text}", "r.yaml")
        return {t.name: t.expression for t in Composer(recipe, self.lock, numerics).outputs("out")}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    return Recipes(tmp_path_factory.mktemp("adapters"))


TASK = """
merge_method: task_arithmetic
base_model: base
models:
  - {model: base+one, parameters: {weight: 0.5}}
  - {model: base+two, parameters: {weight: 0.25}}
dtype: float16
"""


class TestAlgebra:
    def test_a_task_vector_over_its_own_base_is_the_product_alone(self, recipes: Any) -> None:
        found = recipes.outputs(TASK)
        merged = found["model.layers.0.self_attn.q_proj.weight"]
        assert [(c, type(e).__name__, ex.label(e)) for c, e in merged.terms] == [
            (1.0, "Source", "base"),
            (0.5, "LowRank", "one"),
            (0.25, "LowRank", "two"),
        ]
        # no more than the adapters change is computed
        assert isinstance(found["model.layers.1.mlp.down_proj.weight"], ex.Source)
        assert ex.label(found["model.layers.1.mlp.up_proj.weight"].terms[1][1]) == "one"

    def test_of_an_adapted_base(self, recipes: Any) -> None:
        text = TASK.replace("base_model: base", "base_model: base+one").replace(
            "  - {model: base+one, parameters: {weight: 0.5}}\n", ""
        )
        terms = recipes.outputs(text)["model.layers.0.self_attn.q_proj.weight"].terms
        assert [(c, ex.label(e)) for c, e in terms] == [(1.0, "base"), (0.75, "one"), (0.25, "two")]

    def test_a_weight_of_zero_reads_no_adapter(self, recipes: Any) -> None:
        found = recipes.outputs(TASK.replace("0.5", "0").replace("0.25", "0"))
        assert all(isinstance(e, ex.Source) and e.model == "base" for e in found.values())

    def test_mapping_form(self, recipes: Any) -> None:
        mapping = TASK.replace(
            "{model: base+one,", "{model: {model: {path: base}, lora: {path: one}},"
        )
        assert recipes.outputs(mapping) == recipes.outputs(TASK)

    def test_mergekit_numerics_rounds_the_adapted_model(self, recipes: Any) -> None:
        found = recipes.outputs(TASK, MERGEKIT)["model.layers.0.self_attn.q_proj.weight"]
        adapted = found.inputs[0]
        assert isinstance(adapted, ex.Cast) and isinstance(adapted.operand, ex.Linear)

    def test_no_adapter_among_documents(self, recipes: Any) -> None:
        assert str(parse_reference("a+b@c")) == "a+b@c"
        assert parse_reference("a@d+b@c").lora == "b@c"


class TestExplained:
    def test_with_and_without_the_adapters(self, tmp_path: Path) -> None:
        recipes = Recipes(tmp_path)
        path = tmp_path / "r.yaml"
        path.write_text(TASK)
        assumed = explain(str(path), {})
        assert "one: assumed to change every matrix" in assumed.basis
        assert assumed.models["r"].terms == ("base", "one", "two")
        (tmp_path / "r.lock.json").write_text(json.dumps(recipes.lock.to_json()))
        for folders in ({}, {key: str(tmp_path / key) for key in ("base", "one", "two")}):
            found = explain(str(path), folders)
            values = {c: s.mean for c, s in found.models["r"].of("one").items() if s.mean}
            assert values == {("q_proj", 0): 0.5, ("up_proj", 1): 0.5}
            assert "assumed" not in found.basis
            assert found.warnings == ()


class TestChecks:
    def test_biases_and_wide_factors_are_no_reason_to_warn(self, tmp_path: Path) -> None:
        base = tmp_path / "base"
        tensors = random_tensors(llama_shapes(2), 1)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16).half()
        save_model(base, tensors)
        module = "model.layers.0.self_attn.q_proj"
        more = {f"{PREFIX}{module}.lora_B.bias": torch.ones(16)}
        write_adapter(tmp_path / "one", factors({module: (16, 16)}) | more)
        path = tmp_path / "r.yaml"
        path.write_text("merge_method: passthrough\nmodels: [{model: base+one}]\ndtype: float16\n")
        found = explain(str(path), {"base": str(base), "one": str(tmp_path / "one")})
        assert found.warnings == ()


class TestHub:
    @pytest.fixture
    def server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        with LoopbackHub(tmp_path / "hub") as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            yield server

    def test_locked_from_its_header(self, server: LoopbackHub) -> None:
        tensors = {f"{PREFIX}{Q}.lora_A.weight": torch.zeros(2, 5000)}
        folder = write_adapter(server.store.root / "o" / "lora", tensors)
        found = lock_hub("o/lora", None, role="adapter")
        assert found.role == "adapter"
        assert sorted(found.files) == ["adapter_config.json", "adapter_model.safetensors"]
        assert found.config == json.loads((folder / "adapter_config.json").read_text())
        (tensor,) = found.tensors.values()
        assert tensor.shape == (2, 5000)
        assert Lock.from_json(Lock({"o/lora": found}).to_json(), "").sources["o/lora"] == found

    def test_a_model_is_no_adapter(self, server: LoopbackHub) -> None:
        add_model(server.store.root, "o/m", ONE_FILE)
        with pytest.raises(UserError, match=r"no adapter_config\.json"):
            lock_hub("o/m", None, role="adapter")

    def test_an_adapter_is_no_model(self, server: LoopbackHub, tmp_path: Path) -> None:
        write_adapter(server.store.root / "o" / "lora", factors({Q: (8, 8)}))
        with pytest.raises(UserError, match=r"MODEL\+ADAPTER"):
            lock_hub("o/lora", None)
        folder = write_adapter(tmp_path / "lora", factors({Q: (8, 8)}))
        with pytest.raises(UserError, match=r"MODEL\+ADAPTER"):
            lock_folder(folder, "lora", Identities(tmp_path / "cache.json"))
