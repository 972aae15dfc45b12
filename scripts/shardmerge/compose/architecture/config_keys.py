"""What the keys of a config.json say of layers, for all architectures: data, to be added to."""

from __future__ import annotations

from collections.abc import Mapping

#: Where the configuration of a module is, the first that there is; "" is the whole.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "text_decoder": ("text_config", "llm_config", "language_config", ""),
    "vision_tower": ("vision_config", "vision_tower_config", ""),
    "audio_tower": ("audio_config", ""),
}
#: What architectures call the number of layers.
COUNTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_hidden_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
COUNT = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
#: What they call the other sizes that tensors follow, by a term, with how it is told.
SIZES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "width": ("width {}", ("hidden_size", "n_embd", "d_model", "dim", "model_dim")),
    "heads": ("{} heads", ("num_attention_heads", "n_head", "num_heads", "n_heads")),
    "key heads": (
        "{} heads for keys and values",
        ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    ),
    "head size": ("heads of size {}", ("head_dim", "d_kv", "kv_channels")),
    "inner width": (
        "inner width {}",
        ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim", "ffn_hidden_size"),
    ),
    "experts": ("{} experts", ("num_local_experts", "num_experts", "n_routed_experts")),
}
#: Lists, or texts of a letter each, of something for every layer. Slices bring theirs along.
PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "sliding_window_layers",
    "attention_layers",
    "block_configs",
    "hybrid_override_pattern",
    "num_query_heads",
    "num_kv_heads",
    "ffn_multipliers",
    "moe_layer_freq",
    "intermediate_size",
    "activation_sparsity_pattern",
)
#: Objects of something for some layers, by their numbers, which are counted anew.
BY_NUMBER = ("per_layer_config",)
#: Lists of numbers of layers, which are counted anew.
NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "cross_attention_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
)
#: Lists of something for the first layers, which is repeated for the others: RecurrentGemma.
CYCLES = ("block_types",)
#: The first and the last of the layers that are special; -1 is the last of all: ERNIE.
SPANS = (("moe_layer_start_index", "moe_layer_end_index"),)
#: Modules of layers that share their parameters, which one of the layers holds: Zamba.
SHARING = ("shared_transf", "shared_transformer")
#: A module that each of these layers has of its own.
SHARERS = (*SHARING, "mamba_decoder")
#: How many layers for multi-token prediction stand behind the last.
PREDICTORS = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
    "num_mtp_layers",
)
#: How many of the first layers are special.
FIRST = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
#: How many of the last.
LAST = ("num_kv_shared_layers",)
#: Modules outside layers whose tensors hold a share for each layer: Gemma 3n and 4.
SHARES = ("embed_tokens_per_layer", "per_layer_model_projection")
