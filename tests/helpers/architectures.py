"""Tiny models of many architectures, as transformers makes and saves them, with random weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_TEXT = _SIZES | {"num_key_value_heads": 2}
_NARROW = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4}
_FALCON = _NARROW | {"num_attention_heads": 4}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_CLIP = _VISION | {"model_type": "clip_vision_model", "projection_dim": 16}
_GEMMA3 = _TEXT | {"head_dim": 8, "model_type": "gemma3_text"}
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 4}

#: Class of the model, class of its configuration, values of that.
FAMILIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _TEXT),
    "mistral": ("MistralForCausalLM", "MistralConfig", _TEXT),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _TEXT | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _TEXT | {"head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _TEXT | {"head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _TEXT | {"head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _TEXT | {"pad_token_id": 0}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SIZES),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        _FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "falcon_7b": ("FalconForCausalLM", "FalconConfig", _FALCON),
    "mamba": ("MambaForCausalLM", "MambaConfig", _NARROW | {"state_size": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _TEXT | {"num_local_experts": 3}),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "vision_config": _CLIP,
            "text_config": _TEXT | {"model_type": "llama"},
            "image_token_index": 1,
        },
    ),
    "gemma3vl": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"text_config": _GEMMA3, "vision_config": _VISION, "mm_tokens_per_image": 4},
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5 | {"num_decoder_layers": 3}),
}


def save_family(family: str, folder: Path, seed: int) -> Path:
    """Write a model of an architecture and return its folder."""
    import transformers

    model_class, config_class, values = FAMILIES[family]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    model = model.to(torch.float16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.05)
    model.save_pretrained(folder)
    return folder


def load_family(family: str, folder: Path) -> tuple[torch.nn.Module, dict]:
    """Return a model as transformers loads it, and what it says of missing and unexpected keys."""
    import transformers

    loaded = getattr(transformers, FAMILIES[family][0]).from_pretrained(
        folder, output_loading_info=True
    )
    return loaded
