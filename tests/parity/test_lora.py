"""Models with LoRA adapters, against mergekit 0.1.5, which merges them by peft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from oracle import differing_bits, load_folder, run_shardmerge

MERGEKIT = "mergekit-0.1.5"
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}


def _llama(folder: Path, dtype: torch.dtype, **more: Any) -> Path:
    values = {"intermediate_size": 172, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = transformers.LlamaConfig(**SIZES | values | more)
    return _save(transformers.LlamaForCausalLM(config), folder, dtype)


def _gpt2(folder: Path, dtype: torch.dtype) -> Path:
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=99, n_positions=32)
    return _save(transformers.GPT2LMHeadModel(config), folder, dtype)


def _save(model: Any, folder: Path, dtype: torch.dtype) -> Path:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def _adapter(
    model: Path, folder: Path, stored: torch.dtype | None = None, seed: int = 0, **options: Any
) -> Path:
    """Write an adapter of a model with random tensors, all that is trained among them."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    adapted = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 7} | options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(noise)
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    if stored:
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(stored)
    adapted.save_pretrained(folder)
    return folder


def _merged_by_mergekit(reference: str, cache: Path) -> dict[str, torch.Tensor]:
    from mergekit.common import ModelReference

    merged = ModelReference.parse(reference).merged(cache_dir=str(cache))
    return load_folder(Path(merged.model.path))


def _merged_in_float64(reference: str) -> dict[str, torch.Tensor]:
    model, adapter = reference.split("+")
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    return peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()


def _recipe(folder: Path, document: dict[str, Any], name: str = "out") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name} | document, sort_keys=False))
    return path


def _passthrough(folder: Path, reference: str, **more: Any) -> Path:
    models = [{"model": reference}]
    return _recipe(folder, {"merge_method": "passthrough", "models": models} | more)


CASES: dict[str, tuple[Callable[..., Path], torch.dtype, dict[str, Any]]] = {
    "plain": (_llama, torch.float16, {"target_modules": ["q_proj", "v_proj"]}),
    "bfloat16, rslora": (
        _llama,
        torch.bfloat16,
        {"target_modules": "all-linear", "use_rslora": True},
    ),
    "float32, factors in bfloat16": (
        _llama,
        torch.float32,
        {"target_modules": ["down_proj"], "stored": torch.bfloat16},
    ),
    "float64": (_llama, torch.float64, {"target_modules": ["down_proj", "k_proj"]}),
    "patterns": (
        _llama,
        torch.float16,
        {
            "target_modules": ["q_proj", "down_proj", "o_proj"],
            "rank_pattern": {"down_proj": 17, "layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {r"model\.layers\.\d+\.self_attn\.o_proj": 3, "q_proj": 5},
        },
    ),
    "embeddings, head, biases": (
        lambda f, d: _llama(f, d, attention_bias=True, mlp_bias=True),
        torch.float16,
        {
            "target_modules": ["q_proj", "embed_tokens"],
            "modules_to_save": ["lm_head"],
            "bias": "all",
        },
    ),
    "biases of what is adapted": (
        lambda f, d: _llama(f, d, attention_bias=True),
        torch.float16,
        {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"},
    ),
    "lora_bias": (
        lambda f, d: _llama(f, d, attention_bias=True),
        torch.bfloat16,
        {"target_modules": ["q_proj", "o_proj"], "lora_bias": True},
    ),
    "some layers": (
        _llama,
        torch.float16,
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "modules_to_save": ["norm"]},
    ),
    "DoRA": (_llama, torch.float16, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "GPT-2, DoRA": (
        _gpt2,
        torch.bfloat16,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "GPT-2": (
        _gpt2,
        torch.float16,
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "GPT-2, square matrices": (
        _gpt2,
        torch.float32,
        {"target_modules": [r"attn.c_proj"], "fan_in_fan_out": True},
    ),
}


class TestMergedModel:
    """The adapted model alone."""

    @pytest.fixture(scope="class", params=list(CASES))
    def case(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Any, ...]:
        make, dtype, options = CASES[request.param]
        folder = tmp_path_factory.mktemp("lora")
        model = make(folder / "model", dtype)
        adapter = _adapter(model, folder / "adapter", **options)
        reference = f"{model}+{adapter}"
        return folder, reference, _merged_by_mergekit(reference, folder / "cache")

    def test_mergekit_numerics_has_its_bits(self, case: tuple[Any, ...]) -> None:
        folder, reference, theirs = case
        recipe = _passthrough(folder, reference)
        ours = run_shardmerge(recipe, folder, numerics=MERGEKIT, results="same")["out"]
        assert differing_bits(ours, theirs) == {}

    def test_float32_is_as_near_to_the_exact_result(self, case: tuple[Any, ...]) -> None:
        folder, reference, theirs = case
        ours = run_shardmerge(_passthrough(folder, reference), folder, results="ours")["out"]
        exact = _merged_in_float64(reference)
        for name, value in ours.items():
            mine, other = ((t.double() - exact[name]).norm() for t in (value, theirs[name]))
            # peft's product of matrices rounds a product and a sum at once; that shows in float32
            assert mine <= other * (1.2 if value.dtype == torch.float32 else 1 + 1e-6), name
            assert value.dtype == theirs[name].dtype


class TestInRecipes:
    """Adapted models as inputs of merges, also where several documents name them."""

    @pytest.fixture(scope="class")
    def case(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
        folder = tmp_path_factory.mktemp("recipes")
        base = _llama(folder / "base", torch.float16)
        everywhere = {"target_modules": "all-linear"}
        one = _adapter(base, folder / "one", seed=1, **everywhere)
        two = _adapter(base, folder / "two", seed=2, r=3, target_modules=["q_proj", "v_proj"])
        merged = {str(a): _merged_by_mergekit(f"{base}+{a}", folder / "cache") for a in (one, two)}
        for adapter, tensors in merged.items():
            _write_model(Path(f"{adapter}-merged"), base, tensors)
        return folder, base, one, two

    @pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear", "slerp"])
    def test_bits(self, case: tuple[Any, ...], method: str) -> None:
        from oracle import run_mergekit

        folder, base, one, two = case
        parameters = {"linear": {"weight": 0.5}, "ties": {"weight": 0.5, "density": 0.6}}
        parameters = parameters.get(method, {"weight": 0.7})
        document = {"merge_method": method, "base_model": str(base), "dtype": "float16"}
        if method == "linear":
            del document["base_model"]
        if method == "slerp":
            document |= {"parameters": {"t": 0.3}, "base_model": f"{base}+{one}"}
            parameters = {}

        def write(name: str, of: Callable[[Path], str]) -> Path:
            models = [{"model": of(a), "parameters": parameters} for a in (one, two)]
            values = document | {"models": models}
            if method == "slerp":
                values["base_model"] = of(one)
            return _recipe(folder, values, name)

        # mergekit's own loader of adapters is what made the merged folders
        theirs = run_mergekit(
            write(f"{method}-a", lambda a: f"{a}-merged"), folder / f"mergekit-{method}"
        )[f"{method}-a"]
        recipe = write(f"{method}-b", lambda a: f"{base}+{a}")
        ours = run_shardmerge(recipe, folder, numerics=MERGEKIT)[f"{method}-b"]
        assert differing_bits(ours, theirs) == {}

    def test_the_mapping_form_and_a_document_with_an_adapter(self, case: tuple[Any, ...]) -> None:
        folder, base, one, two = case
        document = {"merge_method": "linear", "dtype": "float16"}
        first = document | {
            "name": "first",
            "models": [{"model": {"model": {"path": str(base)}, "lora": {"path": str(one)}},
                        "parameters": {"weight": 1}}],
        }  # fmt: skip
        second = document | {
            "name": "second",
            "models": [{"model": f"first+{two}", "parameters": {"weight": 1}}],
        }
        path = folder / "documents.yaml"
        path.write_text(yaml.safe_dump_all([first, second], sort_keys=False))
        ours = run_shardmerge(path, folder, numerics=MERGEKIT, results="documents")["second"]
        _write_model(folder / "first-merged", base, _load(f"{one}-merged"))
        theirs = _merged_by_mergekit(f"{folder / 'first-merged'}+{two}", folder / "cache")
        assert differing_bits(ours, theirs) == {}


def _load(folder: str) -> dict[str, torch.Tensor]:
    return load_folder(Path(folder))


def _write_model(folder: Path, base: Path, tensors: dict[str, torch.Tensor]) -> None:
    from helpers.models import save_model

    config = json.loads((base / "config.json").read_text())
    save_model(folder, tensors, 1, config)


EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}


class TestExperts:
    """Adapters of parameters (peft's ``target_parameters``), as those of fused experts are."""

    @pytest.mark.parametrize("numerics", ["float32", MERGEKIT])
    @pytest.mark.parametrize("family", ["GptOss", "Mixtral"])
    def test_is_what_peft_merges(self, tmp_path: Path, family: str, numerics: str) -> None:
        config = getattr(transformers, f"{family}Config")
        config = config(**SIZES | EXPERTS | {"intermediate_size": 48, "head_dim": 16})
        base = getattr(transformers, f"{family}ForCausalLM")(config)
        options = {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 3},
        }
        base.save_pretrained(tmp_path / "model", save_original_format=False)
        adapted = peft.get_peft_model(base, peft.LoraConfig(**options))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape) * 0.2)
        adapted.save_pretrained(tmp_path / "adapter")
        wanted = adapted.merge_and_unload().state_dict()
        recipe = _passthrough(tmp_path, f"{tmp_path / 'model'}+{tmp_path / 'adapter'}")
        made = run_shardmerge(recipe, tmp_path, numerics=numerics)["out"]
        changed = [name for name in made if name.endswith(("gate_up_proj", "down_proj"))]
        assert len(changed) == 4
        for name, tensor in made.items():
            assert torch.allclose(tensor, wanted[name], atol=1e-5), name
