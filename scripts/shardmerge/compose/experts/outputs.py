"""The architectures that a mixture can have: names of tensors, and what config.json says.

Experts have a tensor each, as such models are published: so every expert may be made in its own
way, and all programs that know the architecture read the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.compose.derived_model import ConfigChange
from shardmerge.recipe.stage import Mixture

#: The projections of a dense MLP.
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = tuple(f"self_attn.{p}_proj.weight" for p in "qkvo")
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_BIASES = tuple(f"self_attn.{p}_proj.bias" for p in "qkv")
#: What config.json of a dense model means where it does not say it; mixtures mean other things.
_IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
    },
    "qwen3": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
}
_IMPLIED_BY_ALL = {"hidden_act": "silu", "tie_word_embeddings": False}
_BASE = "deepseek-ai/deepseek-moe-16b-base--"


@dataclass(frozen=True)
class MixtureOutput:
    """An architecture of mixtures.

    Args:
        name: For people; recipes write the beginning of it.
        dense: Types of the models that it is assembled from.
        model_type, class_name: What config.json calls it.
        expert: Name of an expert's projection within a layer.
        router: Name of the router within a layer.
        projections: What it calls the projections of a dense MLP.
        kept: Tensors of a dense model's layer that it has too.
        zeros: Of these, what is zeros where the dense model lacks it, with the projection that
            tells how many.
        shared: Name of a shared expert's projection within a layer, or None if it has no such.
        shared_gate: Name of what weighs it, or None.
        objection: Says what of a mixture it cannot have, or None.
        config: Returns what config.json says of a mixture.
    """

    name: str
    dense: tuple[str, ...]
    model_type: str
    class_name: str
    objection: Callable[[Mixture], str | None]
    config: Callable[[Mapping[str, Any], Mixture], Mapping[str, Any]]
    expert: str = "mlp.experts.{number}.{projection}.weight"
    router: str = "mlp.gate.weight"
    projections: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in PROJECTIONS}
    )
    kept: Collection[str] = (*_ATTENTION, *_NORMS)
    zeros: Mapping[str, str] = field(default_factory=dict)
    shared: str | None = None
    shared_gate: str | None = None

    def change(self, config: Mapping[str, Any], mixture: Mixture) -> ConfigChange:
        """Return what config.json says otherwise than that of the dense base model."""
        values: dict[str, Any] = {
            "architectures": [self.class_name],
            "model_type": self.model_type,
        }
        values |= {k: v for k, v in _implied(config).items() if k not in config}
        values |= self.config(config, mixture)
        return ConfigChange(values)


def _implied(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {**_IMPLIED_BY_ALL, **_IMPLIED[config["model_type"]]}
    if config["model_type"] == "llama":
        found["num_key_value_heads"] = config.get("num_attention_heads", 32)
    if "rope_parameters" not in config:
        found["rope_theta"] = 10000.0
    return found


def _mixtral_objection(mixture: Mixture) -> str | None:
    return "it has no shared experts" if mixture.shared else None


def _mixtral_config(config: Mapping[str, Any], mixture: Mixture) -> dict[str, Any]:
    return {
        "num_local_experts": len(mixture.experts),
        "num_experts_per_tok": mixture.experts_per_token,
        "sliding_window": None,
    }


def _deepseek_objection(mixture: Mixture) -> str | None:
    if len(mixture.shared) > 1:
        return "it has one shared expert at most"
    if any(one.positive or one.negative for one in mixture.shared):
        return "its shared expert is not weighed, so that prompts for it mean nothing"
    return None


def _deepseek_config(config: Mapping[str, Any], mixture: Mixture) -> dict[str, Any]:
    return {
        "n_routed_experts": len(mixture.experts),
        "n_shared_experts": len(mixture.shared) or None,
        "num_experts_per_tok": mixture.experts_per_token,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "moe_intermediate_size": config["intermediate_size"],
        # transformers has no class of its own for it
        "auto_map": {
            "AutoConfig": f"{_BASE}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{_BASE}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{_BASE}modeling_deepseek.DeepseekForCausalLM",
        },
    }


def _qwen2_objection(mixture: Mixture) -> str | None:
    if len(mixture.shared) != 1:
        return "it has exactly one shared expert"
    if mixture.gate_mode not in ("random", "uniform_random") and not mixture.shared[0].positive:
        return "its shared expert is weighed by prompts, which are not given"
    return None


def _qwen2_config(config: Mapping[str, Any], mixture: Mixture) -> dict[str, Any]:
    return {
        "num_experts": len(mixture.experts),
        "num_experts_per_tok": mixture.experts_per_token,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "sliding_window": None,
        "use_sliding_window": False,
        "shared_expert_intermediate_size": config["intermediate_size"],
        "moe_intermediate_size": config["intermediate_size"],
    }


def _qwen3_config(config: Mapping[str, Any], mixture: Mixture) -> dict[str, Any]:
    return {
        "num_experts": len(mixture.experts),
        "num_experts_per_tok": mixture.experts_per_token,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "moe_intermediate_size": config["intermediate_size"],
    }


#: In the order in which they are tried, as in mergekit.
OUTPUTS = (
    MixtureOutput(
        name="Mixtral",
        dense=("llama", "mistral"),
        model_type="mixtral",
        class_name="MixtralForCausalLM",
        objection=_mixtral_objection,
        config=_mixtral_config,
        expert="block_sparse_moe.experts.{number}.{projection}.weight",
        router="block_sparse_moe.gate.weight",
        projections={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ),
    MixtureOutput(
        name="DeepSeek MoE",
        dense=("llama", "mistral"),
        model_type="deepseek",
        class_name="DeepseekForCausalLM",
        objection=_deepseek_objection,
        config=_deepseek_config,
        shared="mlp.shared_experts.{projection}.weight",
    ),
    MixtureOutput(
        name="Qwen MoE",
        dense=("llama", "mistral", "qwen2"),
        model_type="qwen2_moe",
        class_name="Qwen2MoeForCausalLM",
        objection=_qwen2_objection,
        config=_qwen2_config,
        kept=(*_ATTENTION, *_NORMS, *_BIASES),
        zeros={name: name.replace("bias", "weight") for name in _BIASES},
        shared="mlp.shared_expert.{projection}.weight",
        shared_gate="mlp.shared_expert_gate.weight",
    ),
    MixtureOutput(
        name="Qwen3 MoE",
        dense=("qwen3",),
        model_type="qwen3_moe",
        class_name="Qwen3MoeForCausalLM",
        objection=_mixtral_objection,
        config=_qwen3_config,
        kept=(*_ATTENTION, *_NORMS, "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    ),
)


def choose_output(mixture: Mixture, types: Mapping[str, Any], where: str) -> MixtureOutput:
    """Return the architecture of a mixture: the wanted one, or the first that can have it.

    Args:
        mixture: What is assembled.
        types: The ``model_type`` of every model, by its name.
        where: File and line.

    Raises:
        UserError: If none can have it; says of each why.
    """
    wanted = (mixture.architecture or "").lower()
    found = [one for one in OUTPUTS if one.name.lower().startswith(wanted)]
    if not found:
        names = ", ".join(f"`{one.name}`" for one in OUTPUTS)
        raise UserError(
            f"there is no architecture {mixture.architecture!r} of mixtures",
            where,
            f"There are {names}; the beginning of a name is enough.",
        )
    reasons = []
    for one in found:
        reason = one.objection(mixture) or _other_type(one, types)
        if reason is None:
            return one
        reasons.append(f"{one.name}: {reason}")
    raise UserError("no architecture can have this mixture", where, "; ".join(reasons) + ".")


def _other_type(output: MixtureOutput, types: Mapping[str, Any]) -> str | None:
    first = next(iter(types.values()))
    for model, kind in types.items():
        if kind not in output.dense:
            return f"{model!r} is a {kind!s:.40}, not a {' or '.join(output.dense)}"
        if kind != first:
            return f"{model!r} is a {kind}, the base model a {first}"
    return None
