"""Tensor names of well-known architectures: what a recipe can be explained on without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardmerge.compose.architecture.names import layer_of
from shardmerge.compose.architecture.norms import is_scale
from shardmerge.sources.lock import LockedSource, LockedTensor


@dataclass(frozen=True)
class Family:
    """Names of an architecture's tensors.

    Args:
        title: For people.
        before, after: Tensors outside layers, in front of them and behind.
        stack: Prefix of the layers.
        layer: Tensors of one layer.
    """

    title: str
    before: tuple[str, ...]
    stack: str
    layer: tuple[str, ...]
    after: tuple[str, ...]

    def tensors(self, layers: int) -> list[str]:
        """Return the names of all tensors of a model with that many layers."""
        stack = [f"{self.stack}{i}.{name}" for i in range(layers) for name in self.layer]
        return [*self.before, *stack, *self.after]


def _weights(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.weight" for name in names)


_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_EXPERTS = tuple(f"block_sparse_moe.experts.{i}.w{k}" for i in range(8) for k in (1, 2, 3))
_EMBEDDING, _TAIL = _weights("model.embed_tokens"), _weights("model.norm", "lm_head")

#: The one that has most of what a recipe's filters name is taken; of several, the first.
FAMILIES = (
    Family("Llama", _EMBEDDING, "model.layers.", _weights(*_ATTENTION, *_MLP, *_NORMS), _TAIL),
    Family(
        "Qwen2",
        _EMBEDDING,
        "model.layers.",
        (*_weights(*_ATTENTION, *_MLP, *_NORMS), *(f"{n}.bias" for n in _ATTENTION[:3])),
        _TAIL,
    ),
    Family(
        "Gemma 3",
        _EMBEDDING,
        "model.layers.",
        _weights(
            *_ATTENTION,
            "self_attn.q_norm",
            "self_attn.k_norm",
            *_MLP,
            *_NORMS,
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        _TAIL,
    ),
    Family(
        "Mixtral",
        _EMBEDDING,
        "model.layers.",
        _weights(*_ATTENTION, "block_sparse_moe.gate", *_EXPERTS, *_NORMS),
        _TAIL,
    ),
    Family(
        "Phi-3",
        _EMBEDDING,
        "model.layers.",
        _weights(
            "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *_NORMS
        ),
        _TAIL,
    ),
    Family(
        "GPT-NeoX",
        _weights("gpt_neox.embed_in"),
        "gpt_neox.layers.",
        _weights(
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
            *_NORMS,
        ),
        _weights("gpt_neox.final_layer_norm", "embed_out"),
    ),
    Family(
        "GPT-2",
        _weights("wte", "wpe"),
        "h.",
        _weights("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
        _weights("ln_f"),
    ),
)


def family_for(filters: Sequence[str]) -> Family:
    """Return the first architecture in which most of a recipe's filters name a tensor."""
    return max(FAMILIES, key=lambda f: sum(any(w in n for n in f.tensors(1)) for w in filters))


def source_of(tensors: Sequence[str]) -> LockedSource:
    """Return a source that has those tensors in name only: of no file and hardly a shape."""
    table: Mapping[str, LockedTensor] = {
        name: LockedTensor("", "F16", () if is_scale(name) else (1, 1), i, i + 1)
        for i, name in enumerate(tensors)
    }
    return LockedSource("local", None, None, None, {}, {}, table)


def adapter_of(model: LockedSource) -> LockedSource:
    """Return a LoRA adapter that changes every matrix in the layers of a model."""
    table = {}
    for name, tensor in model.tensors.items():
        if len(tensor.shape) == 2 and name.endswith(".weight") and layer_of(name):
            rows, columns = tensor.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            for part, shape in (("A", (1, columns)), ("B", (rows, 1))):
                table[f"{stem}.lora_{part}.weight"] = LockedTensor("", "F32", shape, 0, 0)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    return LockedSource("local", None, None, None, config, {}, table, "adapter")
