"""Synthetic checkpoints for measurements: true shapes and sizes, random weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base.dtypes import tensor_bytes
from shardmerge.base.identities import LockedFile
from shardmerge.base.safetensors import write_header
from shardmerge.sources.checkpoint_files import INDEX
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor
from shardmerge.sources.tokenizer.vocabulary import Vocabulary

Shapes = dict[str, tuple[int, ...]]
#: Matrices of DeepSeek's latent attention.
_LATENT = (
    ("q_a_proj", 1536, 7168),
    ("q_b_proj", 24576, 1536),
    ("kv_a_proj_with_mqa", 576, 7168),
    ("kv_b_proj", 32768, 512),
    ("o_proj", 7168, 16384),
)
#: What only its layer for multi-token prediction has.
_PREDICTOR = {
    "embed_tokens": (129280, 7168),
    "enorm": (7168,),
    "hnorm": (7168,),
    "eh_proj": (7168, 14336),
    "shared_head.norm": (7168,),
    "shared_head.head": (129280, 7168),
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "n_routed_experts": 256,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


@dataclass(frozen=True)
class Size:
    """A Llama model and the number of files that it is spread over."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    files: int
    kv: int | None = None

    @property
    def shapes(self) -> Shapes:
        """Its tensors' shapes, in the order of its files."""
        kv = self.kv or self.hidden
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            shapes[f"{name}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{name}.post_attention_layernorm.weight"] = (self.hidden,)
            for part, rows in (("q", self.hidden), ("k", kv), ("v", kv), ("o", self.hidden)):
                shapes[f"{name}.self_attn.{part}_proj.weight"] = (rows, self.hidden)
            for part in ("gate", "up"):
                shapes[f"{name}.mlp.{part}_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{name}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
        head = {"lm_head.weight": (self.vocabulary, self.hidden)}
        return shapes | {"model.norm.weight": (self.hidden,)} | head


#: What builds are measured on.
SIZES = {
    "100MB": Size(8, 512, 1408, 16000, 3),
    "400MB": Size(10, 1024, 2816, 32000, 3),
    "small": Size(4, 512, 1408, 4000, 3),
    "2GB": Size(22, 2048, 5632, 32000, 5),
    "6GB": Size(26, 3200, 8640, 32000, 10),
    "13GB": Size(32, 4096, 11008, 32000, 14),
    "70B-layers": Size(2, 8192, 28672, 32000, 4, 1024),
}
#: What plans are measured on.
LARGE = {
    "70B": Size(80, 8192, 28672, 32000, 15, 1024),
    "405B": Size(126, 16384, 53248, 128256, 191, 1024),
}


def experts(layers: int, count: int) -> Shapes:
    """Return the tensors of a mixture of experts with so many experts in each layer."""
    shapes = Size(layers, 4096, 14336, 32000, 1, 1024).shapes
    dense = {name for name in shapes if ".mlp." in name}
    shapes = {name: shape for name, shape in shapes.items() if name not in dense}
    for layer in range(layers):
        name = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{name}.gate.weight"] = (count, 4096)
        for i in range(count):
            shapes |= {f"{name}.experts.{i}.{w}.weight": (14336, 4096) for w in ("w1", "w3")}
            shapes[f"{name}.experts.{i}.w2.weight"] = (4096, 14336)
    return shapes


def deepseek(layers: int = 61, count: int = 256) -> tuple[Shapes, dict[str, str]]:
    """Return shapes of a DeepSeek-V3 in FP8, one layer for multi-token prediction behind the last.

    Returns:
        Shapes, codes and scales beside each other, and the types of what is not BF16.
    """
    shapes: Shapes = {"model.embed_tokens.weight": (129280, 7168)}
    dtypes: dict[str, str] = {}

    def coded(name: str, rows: int, columns: int) -> None:
        scales = f"{name}.weight_scale_inv"
        shapes[f"{name}.weight"], shapes[scales] = (
            (rows, columns),
            (-(-rows // 128), -(-columns // 128)),
        )
        dtypes[f"{name}.weight"], dtypes[scales] = "F8_E4M3", "F32"

    def gated(name: str, width: int) -> None:
        coded(f"{name}.gate_proj", width, 7168)
        coded(f"{name}.up_proj", width, 7168)
        coded(f"{name}.down_proj", 7168, width)

    for layer in range(layers + 1):
        name = f"model.layers.{layer}"
        norms = {"input_layernorm": 7168, "post_attention_layernorm": 7168}
        norms |= {"self_attn.q_a_layernorm": 1536, "self_attn.kv_a_layernorm": 512}
        shapes |= {f"{name}.{norm}.weight": (width,) for norm, width in norms.items()}
        for part, *shape in _LATENT:
            coded(f"{name}.self_attn.{part}", *shape)
        if layer < 3:
            gated(f"{name}.mlp", 18432)
            continue
        bias = f"{name}.mlp.gate.e_score_correction_bias"
        shapes |= {f"{name}.mlp.gate.weight": (count, 7168), bias: (count,)}
        dtypes[bias] = "F32"
        for expert in (*(f"experts.{i}" for i in range(count)), "shared_experts"):
            gated(f"{name}.mlp.{expert}", 2048)
    for part, shape in _PREDICTOR.items():
        shapes[f"model.layers.{layers}.{part}.weight"] = shape
    return shapes | {"model.norm.weight": (7168,), "lm_head.weight": (129280, 7168)}, dtypes


def make_model(folder: Path, size: Size, config: Mapping[str, object], seed: int) -> None:
    """Write a float16 checkpoint of random weights, without a tokenizer."""
    import numpy as np

    folder.mkdir(parents=True)
    heads = size.hidden // 64
    sizes = {"hidden_size": size.hidden, "intermediate_size": size.intermediate}
    sizes |= {"num_hidden_layers": size.layers, "vocab_size": size.vocabulary, "head_dim": 64}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": (size.kv or size.hidden) // 64}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}, indent=2) + "\n")
    block = (np.random.default_rng(seed).standard_normal(1 << 20) * 0.02).astype(np.float16)
    names, files, weight_map = list(size.shapes), size.files, {}
    for k in range(files):
        chosen = names[len(names) * k // files : len(names) * (k + 1) // files]
        file = f"model-{k + 1:05d}-of-{files:05d}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(write_header([(n, "F16", size.shapes[n]) for n in chosen], {"format": "pt"}))
            for name in chosen:
                left = math.prod(size.shapes[name])
                while left > 0:
                    out.write(block[: min(left, block.size)].tobytes())
                    left -= block.size
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


def lock_of(
    references: list[str],
    shapes: Shapes,
    files: int,
    dtypes: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Lock:
    """Return a lock of sources on the Hub that have these tensors: no weights at all.

    Args:
        references: The models.
        shapes: Of their tensors.
        files: How many files the first has; each other one has one more.
        dtypes: Types of tensors; of all that are not named F16, or BF16 if any is.
        config: Their config.json.
    """
    plain = "BF16" if dtypes else "F16"
    typed = {name: ((dtypes or {}).get(name, plain), shape) for name, shape in shapes.items()}
    config = config or {"model_type": "llama"}
    return Lock({n: _source(n, typed, files + i, config) for i, n in enumerate(references)})


def _source(
    repo: str,
    typed: Mapping[str, tuple[str, tuple[int, ...]]],
    files: int,
    config: Mapping[str, Any],
) -> LockedSource:
    total = sum(tensor_bytes(*one) for one in typed.values())
    names = [f"model-{i:05d}-of-{files:05d}.safetensors" for i in range(1, files + 1)]
    sizes = dict.fromkeys(names, 1024)
    tensors, before = {}, 0
    for name, (dtype, shape) in typed.items():
        size = tensor_bytes(dtype, shape)
        file = names[min(before * files // total, files - 1)]
        tensors[name] = LockedTensor(file, dtype, shape, sizes[file], sizes[file] + size)
        sizes[file] += size
        before += size
    mark = hashlib.sha256(repo.encode()).hexdigest()
    locked = {n: LockedFile(s, sha256=f"{i:04d}{mark}"[:64]) for i, (n, s) in
              enumerate(sizes.items())}  # fmt: skip
    small = ("config.json", "tokenizer.json", "tokenizer_config.json")
    locked |= {name: LockedFile(600, git_oid=mark[:40]) for name in small}
    tokens = Vocabulary.of({f"token {i}": i for i in range(typed["lm_head.weight"][1][0])})
    return LockedSource(
        "hub", repo, None, mark[:40], dict(config), locked, tensors, vocabulary=tokens
    )
