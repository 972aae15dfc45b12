"""Slices of models whose layers differ in kind compute what a model put together by hand does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.built_model import merge, verify
from helpers.planned import described, slices
from shardmerge.base.errors import UserError

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
_MAMBA = {"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8, "mamba_headdim": 8}
_NEMOTRON = {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1}
#: Class, its config's class and values.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ernie": (
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        _EXPERTS | {"moe_layer_start_index": 2, "moe_layer_end_index": 4},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {"lru_width": 32, "attention_window_size": 16, "head_dim": 8},
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 4},
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        "NemotronHConfig",
        _NEMOTRON | {"hybrid_override_pattern": "M-M*M-", "chunk_size": 8, "head_dim": 8},
    ),
    "zamba2": (
        "Zamba2ForCausalLM",
        "Zamba2Config",
        _MAMBA
        | {"layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"]}
        | {"hybrid_layer_ids": [2, 4], "num_mem_blocks": 1, "num_key_value_heads": 4}
        | {"adapter_rank": 4, "chunk_size": 8},
    ),
    "gemma4": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {"head_dim": 8, "sliding_window": 4, "hidden_size_per_layer_input": 0}
        | {"num_kv_shared_layers": 0},
    ),
}
TEXT = torch.tensor([[5, 9, 11, 3, 40, 22, 17, 8, 33, 4, 7, 12]])


def save(family: str) -> torch.nn.Module:
    import transformers

    name, config, values = MODELS[family]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**SIZES | values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained("a")
    return getattr(transformers, name).from_pretrained("a").eval()


def by_hand(model: torch.nn.Module, order: list[int]) -> torch.nn.Module:
    """Return a model with other layers: those of these numbers."""
    made = copy.deepcopy(model)
    layers = next(
        module
        for name, module in made.named_modules()
        if name.endswith("layers") and isinstance(module, torch.nn.ModuleList)
    )
    picked = [copy.deepcopy(layers[number]) for number in order]
    del layers[:]
    for number, layer in enumerate(picked):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
        layers.append(layer)
    made.config.num_hidden_layers = len(order)
    for key in ("layer_types", "layers_block_type"):
        kinds = made.config.__dict__.get(key)
        if isinstance(kinds, list):
            setattr(made.config, key, [kinds[number] for number in order])
    return made


def logits(model: torch.nn.Module) -> torch.Tensor:
    keep = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.inference_mode():
        return model(input_ids=TEXT, **keep).logits


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("family", "runs"),
    [
        ("ernie", [(0, 3), (2, 6)]),
        ("ernie", [(1, 6)]),
        ("ernie", [(0, 4)]),
        ("recurrent_gemma", [(0, 3), (2, 6)]),
        ("recurrent_gemma", [(1, 6)]),
        ("recurrent_gemma", [(0, 6), (3, 6)]),
        ("modernbert", [(0, 3), (2, 6)]),
        ("nemotron_h", [(0, 3), (2, 6)]),
        ("zamba2", [(0, 5), (3, 4), (5, 6)]),
    ],
)
def test_they_follow(family: str, runs: list[tuple[int, int]]) -> None:
    import transformers

    model = save(family)
    recipe = slices(*(("a", *run) for run in runs)) | {"dtype": "float32"}
    out = merge(json.dumps(recipe))
    verify(out)
    merged, report = getattr(transformers, MODELS[family][0]).from_pretrained(
        out.folder, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert not report["unexpected_keys"]
    expected = logits(by_hand(model, [i for run in runs for i in range(*run)]))
    torch.testing.assert_close(logits(merged.eval()), expected, atol=1e-5, rtol=1e-5)
    if list(range(6)) != [i for run in runs for i in range(*run)]:
        assert (logits(model) - expected).abs().max() > 1e-3  # so that it can fail


def test_a_list_that_is_repeated_stays_as_it_is() -> None:
    save("recurrent_gemma")
    kept, _ = described(slices(("a", 0, 3)))
    assert "block_types" not in kept["config"]
    written, _ = described(slices(("a", 1, 6)))
    assert len(written["config"]["block_types"]) == 5


def test_special_layers_that_are_apart_are_refused() -> None:
    save("ernie")
    with pytest.raises(UserError, match="`moe_layer_start_index: 2` cannot be kept"):
        described(slices(("a", 0, 3), ("a", 0, 3)))


@pytest.mark.parametrize("runs", [[(0, 3), (2, 6)], [(0, 2), (3, 6)], [(0, 6), (4, 6)]])
def test_layers_that_share_parameters_keep_their_order(runs: list[tuple[int, int]]) -> None:
    save("zamba2")
    with pytest.raises(UserError, match="layers 2, 4 of 'a' share parameters"):
        described(slices(*(("a", *run) for run in runs)))


@pytest.mark.parametrize(
    ("family", "run", "told"),
    [
        ("modernbert", (1, 6), True),
        ("modernbert", (0, 3), False),
        ("gemma4", (0, 4), True),
        ("gemma4", (1, 6), False),
    ],
)
def test_a_layer_that_cannot_be_first_or_last_is_told(
    family: str, run: tuple[int, int], told: bool
) -> None:
    save(family)
    _, warnings = described(slices(("a", *run)))
    assert any("[layer-period]" in line for line in warnings) == told
