"""Norms merged by ratios: which tensors, which digests, and which families store 1 less."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from oracle import load_folder

from helpers.models import LLAMA, llama_shapes, random_tensors, save_model
from shardmerge.algebra import expression as ex
from shardmerge.base.errors import UserError
from shardmerge.compose import norms
from shardmerge.compose.architecture.norms import ONE_PLUS, is_scale, offset
from shardmerge.engine import build_shard
from shardmerge.plan.decide import load_plan
from shardmerge.plan.files import load_spec
from shardmerge.recipe.settings import load_settings

MODELS = ("base", "x", "y")
LAYERS = 3


def recipe(
    weights: Any = (1, 1), normalize: Any = False, method: Any = "task_arithmetic", scale: Any = 1.0
) -> str:
    models = "".join(
        f"  - model: {name}\n    parameters: {{weight: {weight}}}\n"
        for name, weight in zip("xy", weights, strict=True)
    )
    return (
        f"name: donor\nmerge_method: {method}\nbase_model: base\nmodels:\n{models}"
        f"parameters: {{normalize: {str(normalize).lower()}, lambda: {scale}}}\ndtype: float32\n"
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three models whose norms differ by factors and keep their signs."""
    monkeypatch.chdir(tmp_path)
    made = {}
    for seed, name in enumerate(MODELS):
        tensors = random_tensors(llama_shapes(LAYERS), seed, torch.float32)
        random = torch.Generator().manual_seed(seed)
        for key in tensors:
            if "norm" in key:
                tensors[key] = torch.rand(tensors[key].shape, generator=random) + 0.5
        made[name] = tensors
        save_model(Path(name), tensors, files=2)
    return made


def plan(text: str, **config: Any) -> Any:
    Path("recipe.yaml").write_text(text)
    return load_plan(load_settings({"recipes": ["recipe.yaml"], **config}), say=lambda line: None)


def build(text: str, **config: Any) -> dict[str, torch.Tensor]:
    (made,) = plan(text, **config).builds.values()
    for job in made.shards:
        spec = load_spec(job.digest)
        inputs = dict(zip(spec.required_files(), map(Path, job.sources), strict=True))
        Path(job.output).parent.mkdir(parents=True, exist_ok=True)
        build_shard(spec, inputs, Path(job.output))
    return load_folder(Path(made.shards[0].output).parent)


def expressions(text: str, **config: Any) -> dict[str, ex.Expression]:
    (made,) = plan(text, **config).builds.values()
    specs = [load_spec(job.digest) for job in made.shards]
    return {t.name: t.expression for spec in specs for t in spec.tensors}


class TestResult:
    @pytest.mark.parametrize(
        ("options", "exponents"),
        [
            ({}, (1.0, 1.0)),
            ({"weights": (0.25, -0.5)}, (0.25, -0.5)),
            ({"weights": (3, 1), "normalize": True}, (0.75, 0.25)),
            ({"weights": (1, 1), "scale": 0.5}, (0.5, 0.5)),
        ],
    )
    def test_norms_are_products_and_the_rest_sums(
        self, work: dict[str, Any], options: dict[str, Any], exponents: tuple[Any, ...]
    ) -> None:
        merged = build(recipe(**options), norm_merge="geometric")
        for name, result in merged.items():
            base, x, y = (work[m][name].double() for m in MODELS)
            a, b = exponents
            if "norm" in name:
                expected = base * (x / base) ** a * (y / base) ** b
            else:
                expected = base + a * (x - base) + b * (y - base)
            assert torch.allclose(result.double(), expected, rtol=1e-6, atol=1e-7), name

    def test_gemma_scales_by_one_more(self, work: dict[str, Any]) -> None:
        for name in MODELS:
            config = LLAMA | {"model_type": "gemma2", "num_hidden_layers": LAYERS}
            (Path(name) / "config.json").write_text(json.dumps(config))
        merged = build(recipe(), norm_merge="geometric")
        name = "model.layers.1.input_layernorm.weight"
        base, x, y = (work[m][name].double() + 1 for m in MODELS)
        assert torch.allclose(merged[name].double(), x * y / base - 1, rtol=1e-6, atol=1e-7)

    def test_an_element_without_a_ratio_is_a_sum(self, work: dict[str, Any]) -> None:
        name = "model.layers.0.input_layernorm.weight"
        work["base"][name][0] = 0.0
        work["x"][name][1] *= -1
        work["y"][name][2] = 0.0
        for model in MODELS:
            save_model(Path(model), work[model], files=2)
        merged = build(recipe(), norm_merge="geometric")[name].double()
        base, x, y = (work[m][name].double() for m in MODELS)
        assert torch.allclose(merged[:3], (x + y - base)[:3], atol=1e-7)
        assert torch.allclose(merged[3:], (x * y / base)[3:])

    def test_infinity_is_not_hidden(self, work: dict[str, Any]) -> None:
        """With a negative weight a ratio would turn it into 0."""
        name = "model.norm.weight"
        work["x"][name][5] = torch.inf
        save_model(Path("x"), work["x"], files=2)
        merged = build(recipe((-1, 0.5)), norm_merge="geometric")[name]
        assert merged.isinf().nonzero().tolist() == [[5]]


class TestRescaledRecipient:
    """A norm's scale and what reads it may trade a factor; ratios keep it, sums do not."""

    READERS: ClassVar = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }

    def products(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return what the readers of a normed input compute with it: scale times weight."""
        return [
            tensors[f"model.layers.{i}.{norm}.weight"].double()
            * tensors[f"model.layers.{i}.{reader}.weight"].double()
            for i in range(LAYERS)
            for norm, readers in self.READERS.items()
            for reader in readers
        ]

    def rescale(self, work: Any, factor: Any) -> None:
        """Rescale the recipient ``x``; ``y`` becomes a fine-tune of the base's norms alone."""
        for key in work["y"]:
            if not is_scale(key):
                work["y"][key] = work["base"][key]
        for i in range(LAYERS):
            for norm, readers in self.READERS.items():
                scale = work["x"][f"model.layers.{i}.{norm}.weight"]
                factors = factor(scale.shape)
                scale /= factors
                for reader in readers:
                    work["x"][f"model.layers.{i}.{reader}.weight"] *= factors
        for name in MODELS:
            save_model(Path(name), work[name], files=2)
        Path("recipe.lock.json").unlink(missing_ok=True)

    @pytest.mark.parametrize("weight", [1, 0.5, -0.5])
    @pytest.mark.parametrize("exact", [True, False])
    def test_ratios_give_the_same_function(
        self, work: dict[str, Any], weight: float | int, exact: bool
    ) -> None:
        """Powers of two move no bit of a ratio; other factors round."""

        def factor(shape: Any) -> Any:
            power = torch.rand(shape, generator=random) * 6 - 2
            return 2 ** (power.round() if exact else power)

        random = torch.Generator().manual_seed(7)
        self.rescale(work, torch.ones)
        text = recipe((1, weight))
        before = {k: build(text, norm_merge=k, results=k) for k in ("geometric", "arithmetic")}
        self.rescale(work, factor)
        after = {k: build(text, norm_merge=k, results=k) for k in ("geometric", "arithmetic")}
        expected, found = (self.products(made["geometric"]) for made in (before, after))
        for one, other in zip(expected, found, strict=True):
            if exact and weight == 1:
                assert torch.equal(one, other)
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
        expected, found = (self.products(made["arithmetic"]) for made in (before, after))
        for one, other in zip(expected, found, strict=True):
            assert (one - other).abs().mean() > 0.05 * one.abs().mean()

    def test_the_recipient_must_have_weight_one(self, work: dict[str, Any]) -> None:
        """With another weight its norms and its projections no longer undo each other."""
        self.rescale(work, torch.ones)
        before = build(recipe((0.5, 1)), norm_merge="geometric")
        self.rescale(work, lambda shape: torch.full(shape, 4.0))
        after = build(recipe((0.5, 1)), norm_merge="geometric")
        pairs = zip(self.products(before), self.products(after), strict=True)
        assert not any(torch.allclose(one, other, rtol=0.1) for one, other in pairs)


class TestIdentity:
    """Only what is changed gets another digest."""

    def digests(self, text: Any, **config: Any) -> dict[Any, Any]:
        (made,) = plan(text, max_shard_size=1, **config).builds.values()
        specs = [(load_spec(job.digest), job.digest) for job in made.shards]
        return {t.name: digest for spec, digest in specs for t in spec.tensors}

    def test_only_norms_change(self, work: dict[str, Any]) -> None:
        before = self.digests(recipe())
        after = self.digests(recipe(), norm_merge="geometric")
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {name for name in before if "norm" in name}

    @pytest.mark.parametrize("weights", [(1, 0), (0, 0)])
    def test_nothing_changes_where_one_model_is_taken_whole(
        self, work: dict[str, Any], weights: tuple[Any, ...]
    ) -> None:
        text = recipe(weights)
        assert self.digests(text) == self.digests(text, norm_merge="geometric")

    def test_a_model_of_weight_zero_is_not_read(self, work: dict[str, Any]) -> None:
        found = expressions(recipe((0.5, 0)), norm_merge="geometric")
        call = found["model.norm.weight"]
        assert call.method == norms.METHOD
        assert [s.model for s in ex.sources(call)] == ["x", "base"] or call.base == 1
        assert {s.model for s in ex.sources(call)} == {"base", "x"}

    def test_other_methods_are_left_alone(self, work: dict[str, Any]) -> None:
        text = recipe().replace("task_arithmetic", "ties").replace("lambda", "density")
        before, after = (self.digests(text, norm_merge=w) for w in ("arithmetic", "geometric"))
        assert before == after

    def test_one_document_of_two(self, work: dict[str, Any]) -> None:
        second = recipe((0.5, 0.5)).replace("name: donor", "name: other")
        text = f"{recipe()}---\n{second}"
        plain = plan(text).builds
        one = plan(text, norm_merge={"other": "geometric"}).builds
        for name, same in (("donor", True), ("other", False)):
            before, after = ([j.digest for j in p[name].shards] for p in (plain, one))
            assert (before == after) is same

    def test_an_intermediate_document_folds(self, work: dict[str, Any]) -> None:
        final = (
            "name: final\nmerge_method: linear\nbase_model: x\nparameters: {normalize: false}\n"
            "models:\n  - model: x\n    parameters: {weight: 0.5}\n"
            "  - model: donor\n    parameters: {weight: 0.5}\ndtype: float32\n"
        )
        merged = build(f"{recipe()}---\n{final}", norm_merge="geometric")
        name = "model.layers.2.post_attention_layernorm.weight"
        base, x, y = (work[m][name].double() for m in MODELS)
        assert torch.allclose(merged[name].double(), 0.5 * x + 0.5 * x * y / base, rtol=1e-6)


class TestMistakes:
    def test_unknown_document(self, work: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=r"norm_merge.*'doner'") as caught:
            plan(recipe(), norm_merge={"doner": "geometric"})
        assert "'donor'" in str(caught.value)

    def test_document_of_another_method(self, work: dict[str, Any]) -> None:
        text = recipe().replace("task_arithmetic", "ties").replace("lambda", "density")
        with pytest.raises(UserError, match="'donor' is merged by ties"):
            plan(text, norm_merge={"donor": "geometric"})

    def test_unknown_word(self) -> None:
        with pytest.raises(UserError, match="'geometrical' is not allowed") as caught:
            load_settings({"norm_merge": "geometrical"})
        assert "'geometric'" in str(caught.value)
        with pytest.raises(UserError, match=r"norm_merge\.donor: 'sum' is not allowed"):
            load_settings({"norm_merge": {"donor": "sum"}})

    @pytest.mark.parametrize("value", ["geometric", {"donor": "geometric"}])
    def test_mergekits_bits_are_those_of_sums(self, value: dict[str, Any] | str) -> None:
        with pytest.raises(UserError, match="norm_merge"):
            load_settings({"norm_merge": value, "numerics": "mergekit-0.1.5"})


class TestNames:
    @pytest.mark.parametrize(
        "name",
        """model.layers.0.input_layernorm.weight model.norm.weight h.3.ln_1.weight
        transformer.ln_f.weight gpt_neox.final_layer_norm.weight
        model.layers.1.self_attn.q_norm.weight
        backbone.layers.0.norm.weight backbone.norm_f.weight transformer.h.0.ln_attn.weight
        encoder.LayerNorm.gamma transformer.ln.weight""".split(),
    )
    def test_scales(self, name: str) -> None:
        assert is_scale(name)

    @pytest.mark.parametrize(
        "name",
        """h.3.ln_1.bias model.layers.0.mlp.up_proj.weight lm_head.weight model.embed_tokens.weight
        transformer.h.0.mlp.dense_4h_to_h.weight norm1.linear.weight model.layers.0.mixer.A_log
        model.layers.0.kln.weight""".split(),
    )
    def test_others(self, name: str) -> None:
        assert not is_scale(name)


#: Families of both kinds, made with their default sizes but without memory for weights.
FAMILIES = (
    "llama mistral qwen2 qwen3 phi3 gpt2 gpt_neox falcon mamba mixtral gemma gemma2 gemma3_text "
    "gemma3n_text recurrent_gemma vaultgemma nemotron qwen3_next qwen3_5_text"
).split()
#: What four layers need besides.
SIZES = {"nemotron": {"num_key_value_heads": 8}, "gemma3n_text": {"num_kv_shared_layers": 0}}
_ADDS_ONE = re.compile(r"1(?:\.0)? \+ self\.weight|self\.weight \+ 1")


class TestFamilies:
    """What the names say is what the classes of transformers do."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_norm(self, family: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(family, num_hidden_layers=4, **SIZES.get(family, {}))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        kinds = 0
        for name, module in model.named_modules():
            kind = type(module).__name__
            if not re.search("Norm", kind) or not hasattr(module, "weight"):
                continue
            if module.weight is None:
                continue
            kinds += 1
            source = "" if kind == "LayerNorm" else inspect.getsource(type(module))
            assert is_scale(f"{name}.weight"), name
            expected = float(bool(_ADDS_ONE.search(source)))
            found = offset({"model_type": family}, f"{name}.weight")
            assert found == expected, (name, kind)
        assert kinds

    def test_every_family_of_transformers_that_adds_one_is_known(self) -> None:
        import transformers

        root = Path(transformers.__file__).parent / "models"
        found = set()
        for path in root.glob("*/modeling_*.py"):
            if _ADDS_ONE.search(path.read_text(encoding="utf-8")):
                for config in path.parent.glob("configuration_*.py"):
                    text = config.read_text(encoding="utf-8")
                    found |= set(re.findall(r'^    model_type = "(\w+)"', text, re.MULTILINE))
        found = {f for f in found if not re.search("vision|audio|videoprism", f)}
        assert found == ONE_PLUS
