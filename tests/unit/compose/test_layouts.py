"""Models of one architecture in different layouts: merged as if all were in the first one's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.built_model import Built, merge
from helpers.engine_cases import SMALL, tuned
from shardmerge.base.errors import UserError
from shardmerge.engine import arranging

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

_SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "num_key_value_heads": 4,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
#: Class, class of the configuration, values.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _SIZES | {"num_local_experts": 3}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 8},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _SIZES | _DEEPSEEK),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "vision_config": _VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
            "text_config": _SIZES | {"model_type": "llama"},
            "image_token_index": 1,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": _SIZES | {"model_type": "gemma3_text", "head_dim": 4},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
        },
    ),
}
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a and b of every family, each in the layout of files and in the running model's."""
    import transformers

    folder = tmp_path_factory.mktemp("layouts")
    for family, (model_class, config_class, values) in FAMILIES.items():
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            config = getattr(transformers, config_class)(**values)
            model = getattr(transformers, model_class)(config)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.add_(torch.randn(tensor.shape) * 0.05)
            for layout, original in (("files", True), ("running", False)):
                path = folder / family / f"{name}-{layout}"
                model.save_pretrained(path, save_original_format=original)
    return folder


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arranging, "_BAND", 100)  # bytes: bands end within matrices


def built(first: Path, second: Path, recipe: dict[str, Any], **config: Any) -> Built:
    """Merge two folders as models a and b."""
    shutil.rmtree("results", ignore_errors=True)
    Path("recipe.lock.json").unlink(missing_ok=True)
    with tuned(**SMALL):
        return merge(json.dumps(recipe), sources={"a": str(first), "b": str(second)}, **config)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def copied(found: Built) -> Path:
    """Return a copy of a merged model: the next one is built in the same place."""
    target = Path(f"copy{len(list(Path().glob('copy*')))}")
    shutil.copytree(found.folder, target)
    return target


def same(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


LINEAR = {
    "name": "out",
    "merge_method": "linear",
    "models": [
        {"model": "a", "parameters": {"weight": 0.3}},
        {"model": "b", "parameters": {"weight": 0.7}},
    ],
    "dtype": "bfloat16",
}
TASK = {
    "name": "out",
    "merge_method": "task_arithmetic",
    "base_model": "a",
    "models": [{"model": "b", "parameters": {"weight": 0.5}}],
    "dtype": "float32",
}
TIES = TASK | {
    "merge_method": "ties",
    "models": [{"model": "b", "parameters": {"weight": 0.5, "density": 0.5}}],
}


class TestFamilies:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_layouts_differ(self, saved: Path, family: str) -> None:
        names = [tensors(saved / family / f"a-{one}").keys() for one in ("files", "running")]
        assert names[0] != names[1]

    @pytest.mark.parametrize("order", [("files", "running"), ("running", "files")], ids="-".join)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_as_if_both_were_in_the_first(
        self, saved: Path, family: str, order: tuple[str, str]
    ) -> None:
        one, other = (saved / family / f"{n}-{k}" for n, k in zip("ab", order, strict=True))
        mixed = copied(built(one, other, LINEAR))
        plain = copied(built(one, saved / family / f"b-{order[0]}", LINEAR))
        assert same(mixed, plain)
        assert tensors(mixed).keys() == tensors(one).keys()

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    @pytest.mark.parametrize("recipe", [TASK, TIES], ids=["task_arithmetic", "ties"])
    def test_other_methods(self, saved: Path, recipe: dict[str, Any], numerics: str) -> None:
        folder = saved / "mixtral"
        mixed = copied(built(folder / "a-files", folder / "b-running", recipe, numerics=numerics))
        plain = copied(built(folder / "a-files", folder / "b-files", recipe, numerics=numerics))
        assert same(mixed, plain)

    @pytest.mark.parametrize("deltas", ["fuse", "store"])
    def test_task_vectors_may_be_stored(self, saved: Path, deltas: str) -> None:
        folder = saved / "qwen3_moe"
        mixed = copied(built(folder / "a-running", folder / "b-files", TASK, deltas=deltas))
        plain = copied(built(folder / "a-running", folder / "b-running", TASK))
        assert same(mixed, plain)

    @pytest.mark.parametrize("family", EXPERTS)
    def test_transformers_loads_it(self, saved: Path, family: str) -> None:
        import transformers

        logits = []
        for order in (("files", "running"), ("running", "files"), ("files", "files")):
            one, other = (saved / family / f"{n}-{k}" for n, k in zip("ab", order, strict=True))
            made = built(one, other, LINEAR | {"dtype": "float32"}).folder
            model, said = getattr(transformers, FAMILIES[family][0]).from_pretrained(
                made, output_loading_info=True
            )
            assert not said["missing_keys"] and not said["unexpected_keys"]
            with torch.no_grad():
                logits.append(model(torch.arange(8)[None]).logits)
        assert torch.equal(logits[0], logits[2])
        assert torch.equal(logits[1], logits[2])

    def test_slices_of_both(self, saved: Path) -> None:
        folder = saved / "mixtral"
        rows = [("b", [1, 2]), ("a", [0, 1])]
        recipe = {
            "name": "out",
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": m, "layer_range": r}]} for m, r in rows],
            "dtype": "float32",
        }
        mixed = copied(built(folder / "a-files", folder / "b-running", recipe))
        plain = copied(built(folder / "a-running", folder / "b-running", recipe))
        assert same(mixed, plain)
