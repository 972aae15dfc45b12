"""Small random checkpoints for the tests: real safetensors files, sharded, with configs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_theta": 10000.0,
}


def llama_shapes(
    layers: int, hidden: int = 16, inter: int = 24, vocab: int = 32, kv: int = 8
) -> Any:
    """Return the tensors of a Llama model with their shapes, in checkpoint order."""
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (hidden,),
            p + "self_attn.q_proj.weight": (hidden, hidden),
            p + "self_attn.k_proj.weight": (kv, hidden),
            p + "self_attn.v_proj.weight": (kv, hidden),
            p + "self_attn.o_proj.weight": (hidden, hidden),
            p + "post_attention_layernorm.weight": (hidden,),
            p + "mlp.gate_proj.weight": (inter, hidden),
            p + "mlp.up_proj.weight": (inter, hidden),
            p + "mlp.down_proj.weight": (hidden, inter),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    """Return normal random tensors without negative zeros."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) + 0.0
        for name, shape in shapes.items()
    }


def save_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    files: int = 1,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a checkpoint in that many files, in the order of the tensors; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = {int(n.split(".")[2]) for n in tensors if n.startswith("model.layers.")}
    default = LLAMA | {"num_hidden_layers": len(layers), "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config or default, indent=2) + "\n")
    names = list(tensors)
    size = math.ceil(len(names) / files)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    weight_map = {}
    for i, group in enumerate(groups, 1):
        file = "model.safetensors"
        if files > 1:
            file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file({n: tensors[n].clone() for n in group}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    if files > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def llama(
    folder: Path,
    seed: int,
    layers: int = 3,
    files: int = 1,
    dtype: Any = torch.float16,
    **sizes: Any,
) -> Any:
    """Write a random Llama checkpoint and return its folder."""
    shapes = llama_shapes(layers, **sizes)
    tensors = random_tensors(shapes, seed, dtype)
    return save_model(folder, tensors, files)
