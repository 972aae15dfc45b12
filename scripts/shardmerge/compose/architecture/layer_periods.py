"""Layers whose kind follows from their number: what a config.json says by a period, as a list.

Where layers are taken out or put in another order, such a rule no longer tells what they are. A
list tells it, where the architecture takes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.base.configvalues import family


@dataclass(frozen=True)
class _Rule:
    """Every so many layers one is special.

    Args:
        lists: Key of the list that says it of each layer, and is followed where it is there.
        special: What the list has for the special layers.
        other: What it has for the others.
        default: The period where the configuration names none.
        keys: Keys that name it.
        first: Whether the first layer is special, or the last of every period.
    """

    lists: str
    special: Any
    other: Any
    default: int
    keys: tuple[str, ...] = ()
    first: bool = False


_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")
_EVERY_SECOND = _Rule("layer_types", _FULL, _SLIDING, 2)
_EVERY_FOURTH = _Rule("layer_types", _FULL, _SLIDING, 4)
_LINEAR_ATTENTION = _Rule("layer_types", _FULL, _LINEAR, 4, ("full_attention_interval",))
_NO_ROPE = _Rule("no_rope_layers", 0, 1, 4, ("no_rope_layer_interval",))
_GLOBAL = ("global_attn_every_n_layers",)
#: By ``model_type``, as the configuration classes of transformers have it; a test compares.
RULES: Mapping[str, _Rule] = {
    "afmoe": _Rule("layer_types", _FULL, _SLIDING, 4, _GLOBAL),
    "cohere2": _Rule("layer_types", _FULL, _SLIDING, 4, _PATTERN),
    "cwm": _Rule("layer_types", _FULL, _SLIDING, 4, (), True),
    "exaone4": _Rule("layer_types", _FULL, _SLIDING, 4, _PATTERN),
    "gemma2": _EVERY_SECOND,
    "gemma3_text": _Rule("layer_types", _FULL, _SLIDING, 6, _PATTERN),
    "gemma3n_text": _Rule("layer_types", _FULL, _SLIDING, 5),
    "gpt_oss": _EVERY_SECOND,
    "llama4_text": _NO_ROPE,
    "minimax": _Rule("layer_types", _LINEAR, _FULL, 2),
    "modernbert": _Rule("layer_types", _FULL, _SLIDING, 3, _GLOBAL, True),
    "modernbert-decoder": _Rule("layer_types", _FULL, _SLIDING, 3, _GLOBAL, True),
    "olmo3": _EVERY_FOURTH,
    "qwen3_5_moe_text": _LINEAR_ATTENTION,
    "qwen3_5_text": _LINEAR_ATTENTION,
    "qwen3_next": _LINEAR_ATTENTION,
    "smollm3": _NO_ROPE,
    "vaultgemma": _EVERY_SECOND,
}
#: Families that decide about a layer by a rule that is not written here, where no list does.
OTHERS = frozenset(
    """bailing_hybrid beam cohere2_moe deepseek_v4 diffusion_gemma_text dots3_note_text
    embedding_gemma2_text exaone_moe flint gemma4_text gemma4_unified_text glm5_next_text
    granite_swa granitemoe_swa inkling2_text inkling_text kimi_linear kolibri1 lfm3 lfm3_vl_vision
    mimo_v2_flash mistral_large4_text muse_glimmer_text muse_glimmer_vision muse_spark_text
    muse_spark_vision neomme olmo_hybrid qwen4_exp_text t5_gemma_module t5gemma2_decoder
    t5gemma2_text ultrabert zamba""".split()
)
#: Families whose first layer has other tensors than the rest.
_FIRST_ALONE = frozenset({"modernbert", "modernbert-decoder"})
#: Families whose last layer transformers takes for one of full attention, whatever a list says.
_LAST_FULL = frozenset(
    """beam diffusion_gemma_text embedding_gemma2_text gemma4_text gemma4_unified_text""".split()
)
#: Periods that a list stands for.
_LISTED = ("full_attention_interval", "no_rope_layer_interval", *_PATTERN, *_GLOBAL)
#: Periods that none does.
_UNLISTED = (
    "attn_layer_period",
    "expert_layer_period",
    "decoder_sparse_step",
    "encoder_sparse_step",
    "moe_layer_interval",
    "moe_layer_freq",
    "interleave_moe_layer_step",
    "cross_layer_interval",
)
_LISTS = ("layer_types", "no_rope_layers", "layers_block_type")


def implied(config: Mapping[str, Any], count: int) -> tuple[str, list[Any]] | None:
    """Return the list that a configuration stands for, with its key.

    Args:
        config: Of one stack of layers.
        count: Number of layers.

    Returns:
        None where it has a list itself, or follows no rule that is known here.
    """
    rule = RULES.get(family(config))
    if rule is None or config.get(rule.lists):
        return None
    period = next((config[key] for key in rule.keys if config.get(key) is not None), rule.default)
    if type(period) is not int or period < 1:
        return None
    place = 0 if rule.first else period - 1
    return rule.lists, [rule.special if i % period == place else rule.other for i in range(count)]


def untold(config: Mapping[str, Any], numbers: Sequence[int]) -> list[str]:
    """Return what a configuration says of layers by their numbers and is no longer true.

    Args:
        config: Of one stack of layers.
        numbers: For each new layer, the number that it had.

    Returns:
        Keys, or ``model_type`` if it is the family's own rule.
    """
    if _is_misplaced(config, numbers):
        return ["model_type"]
    if all(i == number for i, number in enumerate(numbers)):
        return []
    has_list = any(config.get(key) for key in _LISTS)
    listed = has_list or implied(config, 1) is not None
    found = [
        key
        for key in (*_UNLISTED, *(() if listed else _LISTED))
        if type(period := config.get(key)) is int
        and period > 1
        and any((i - number) % period for i, number in enumerate(numbers))
    ]
    if not found and not has_list and family(config) in OTHERS:
        return ["model_type"]
    return found


def _is_misplaced(config: Mapping[str, Any], numbers: Sequence[int]) -> bool:
    """Whether the first or the last layer is one that the family cannot have there."""
    if family(config) in _FIRST_ALONE:
        return any((i == 0) != (number == 0) for i, number in enumerate(numbers))
    kinds = config.get("layer_types")
    if family(config) not in _LAST_FULL or not isinstance(kinds, list) or not numbers:
        return False
    return numbers[-1] < len(kinds) and kinds[numbers[-1]] != _FULL
