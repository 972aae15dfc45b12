"""Tiny models that see, and text models like their decoders, as transformers saves them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_TEXT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"mrope_section": [1, 1, 0], "rope_type": "default", "rope_theta": 10000.0}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_CLIP = _VISION | {"model_type": "clip_vision_model", "projection_dim": 16}
_QWEN_TOKENS = {
    "image_token_id": 3,
    "video_token_id": 4,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}
_PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN_VISION = {"depth": 3, "num_heads": 4, **_PATCHES}
_QWEN25_VISION = _QWEN_VISION | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 16,
}
_MLLAMA_TEXT = _TEXT | {
    "num_hidden_layers": 4,
    "cross_attention_layers": [1, 3],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_MLLAMA_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_global_layers": 1,
    "attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "max_num_tiles": 2,
    "vision_output_dim": 32,
    "intermediate_layers_indices": [0],
    "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
}
_RESAMPLER = {
    "resampler_n_latents": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
    "num_key_value_heads": 2,
    "hidden_size": 16,
}
_IDEFICS_VISION = {
    "embed_dim": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_AUDIO = {
    "model_type": "qwen2_audio_encoder",
    "d_model": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 8,
    "max_source_positions": 16,
}
_PLAIN = {k: v for k, v in _TEXT.items() if k != "num_key_value_heads"}
_LLAMA = ("LlamaForCausalLM", "LlamaConfig")


@dataclass(frozen=True)
class Family:
    """A family of models that see.

    Args:
        whole: Class and class of the configuration.
        values: Of the configuration.
        text: Class and class of the configuration of text models like its decoder.
        text_values: Of that configuration, besides those that all have.
        root: What stands before the decoder's tensors in the running model.
        layers: The decoder's layers that a text model has, in order.
    """

    whole: tuple[str, str]
    values: dict[str, Any]
    text: tuple[str, str] = _LLAMA
    text_values: dict[str, Any] | None = None
    root: str = "model.language_model."
    layers: tuple[int, ...] = (0, 1)

    def named(self, name: str) -> str:
        """Return the name that a text model's tensor has in the running model that sees."""
        if not name.startswith("model."):
            return name
        first, rest = name.removeprefix("model.").split(".", 1)
        if first != "layers":
            return f"{self.root}{first}.{rest}"
        number, rest = rest.split(".", 1)
        return f"{self.root}layers.{self.layers[int(number)]}.{rest}"

    def save(self, folder: Path, seed: int) -> Path:
        """Write a model that sees, with random weights, in several files."""
        return _save(self.whole, self.values, folder, seed)

    def save_text(self, folder: Path, seed: int, **values: Any) -> Path:
        """Write a text model, with random weights."""
        return _save(self.text, {**_TEXT, **(self.text_values or {}), **values}, folder, seed)


FAMILIES = {
    "llava": Family(
        ("LlavaForConditionalGeneration", "LlavaConfig"),
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _CLIP,
            "image_token_index": 3,
        },
    ),
    "llava_next": Family(
        ("LlavaNextForConditionalGeneration", "LlavaNextConfig"),
        {
            "text_config": _TEXT | {"model_type": "mistral"},
            "vision_config": _CLIP,
            "image_token_index": 3,
        },
        ("MistralForCausalLM", "MistralConfig"),
    ),
    "qwen2_audio": Family(
        ("Qwen2AudioForConditionalGeneration", "Qwen2AudioConfig"),
        {
            "text_config": _TEXT | {"model_type": "qwen2"},
            "audio_config": _AUDIO,
            "audio_token_index": 3,
        },
        ("Qwen2ForCausalLM", "Qwen2Config"),
    ),
    "qwen2_vl": Family(
        ("Qwen2VLForConditionalGeneration", "Qwen2VLConfig"),
        {
            "text_config": _TEXT | {"rope_parameters": _ROPE},
            "vision_config": _QWEN_VISION | {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2},
            **_QWEN_TOKENS,
        },
        ("Qwen2ForCausalLM", "Qwen2Config"),
    ),
    "qwen2_5_vl": Family(
        ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig"),
        {
            "text_config": _TEXT | {"rope_parameters": _ROPE},
            "vision_config": _QWEN25_VISION | {"window_size": 16, "fullatt_block_indexes": [1]},
            **_QWEN_TOKENS,
        },
        ("Qwen2ForCausalLM", "Qwen2Config"),
    ),
    "qwen3_vl": Family(
        ("Qwen3VLForConditionalGeneration", "Qwen3VLConfig"),
        {
            "text_config": _TEXT | {"rope_parameters": _ROPE, "head_dim": 4},
            "vision_config": _QWEN25_VISION
            | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            **_QWEN_TOKENS,
        },
        ("Qwen3ForCausalLM", "Qwen3Config"),
        {"head_dim": 4},
    ),
    "mllama": Family(
        ("MllamaForConditionalGeneration", "MllamaConfig"),
        {"text_config": _MLLAMA_TEXT, "vision_config": _MLLAMA_VISION, "image_token_index": 48},
        layers=(0, 2),
    ),
    "gemma3": Family(
        ("Gemma3ForConditionalGeneration", "Gemma3Config"),
        {
            "text_config": _TEXT | {"model_type": "gemma3_text", "head_dim": 4},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
        },
        ("Gemma3ForCausalLM", "Gemma3TextConfig"),
        {"head_dim": 4},
    ),
    "idefics2": Family(
        ("Idefics2ForConditionalGeneration", "Idefics2Config"),
        {
            "text_config": _TEXT | {"model_type": "mistral"},
            "vision_config": _VISION,
            "perceiver_config": _RESAMPLER,
            "image_token_id": 3,
        },
        ("MistralForCausalLM", "MistralConfig"),
        root="model.text_model.",
    ),
    "idefics3": Family(
        ("Idefics3ForConditionalGeneration", "Idefics3Config"),
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _VISION,
            "scale_factor": 2,
            "image_token_id": 3,
        },
        root="model.text_model.",
    ),
    "smolvlm": Family(
        ("SmolVLMForConditionalGeneration", "SmolVLMConfig"),
        {
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _VISION,
            "scale_factor": 2,
            "image_token_id": 3,
        },
        root="model.text_model.",
    ),
    "idefics": Family(
        ("IdeficsForVisionText2Text", "IdeficsConfig"),
        {
            **_PLAIN,
            "additional_vocab_size": 2,
            "cross_layer_interval": 1,
            "vision_config": _IDEFICS_VISION,
        },
        text_values={"num_key_value_heads": 4},
        root="model.",
    ),
}


def load(folder: Path, name: str) -> torch.nn.Module:
    """Return a saved model, of a class of transformers, in float32; all its tensors are there."""
    import transformers

    model, found = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not found["missing_keys"], found["missing_keys"]
    assert not found["unexpected_keys"], found["unexpected_keys"]
    assert not found["mismatched_keys"], found["mismatched_keys"]
    return model.eval()


def told(model: torch.nn.Module) -> torch.Tensor:
    """Return what a model says of some tokens, without a picture."""
    tokens = torch.tensor([[1, 7, 9, 30, 11, 2, 40]])
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def _save(classes: tuple[str, str], values: dict[str, Any], folder: Path, seed: int) -> Path:
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, classes[0])(getattr(transformers, classes[1])(**values))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn(tensor.shape) * 0.05)
    model.save_pretrained(folder, max_shard_size="30KB")
    return folder
