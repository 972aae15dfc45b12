"""Norm layers: which tensors are their scales, and what a family adds to a stored scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shardmerge.base.configvalues import family

_SCALES = ("weight", "gamma", "scale")
_NORM = re.compile(r"norm|(?:^|_)ln(?:_|\d|$)", re.IGNORECASE)
#: Families (``model_type``) whose text model stores w and scales by ``1 + w``. Tests compare with
#: the classes of transformers.
ONE_PLUS = frozenset(
    """gemma gemma2 gemma3 gemma3_text minimax_m3_vl minimax_m3_vl_text muse_glimmer
    muse_glimmer_text muse_spark muse_spark_text nemotron qwen3_5 qwen3_5_moe qwen3_5_moe_text
    qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma step3p5 step3p7 t5_gemma_module
    t5gemma t5gemma2 t5gemma2_decoder t5gemma2_encoder t5gemma2_text vaultgemma""".split()
)
#: What scales by w itself even there: gated norms of linear attention, vision and audio towers.
_PLAIN = re.compile(r"\blinear_attn\.norm\.|vision|visual|audio", re.IGNORECASE)


def is_scale(tensor: str) -> bool:
    """Whether a tensor is the scale of a norm layer (its shift, a bias, is not)."""
    module, _, kind = tensor.rpartition(".")
    return kind in _SCALES and _NORM.search(module.rpartition(".")[2]) is not None


def offset(config: Mapping[str, Any], tensor: str) -> float:
    """Return what a norm adds to its stored scale before it multiplies: 0, or 1 as in Gemma.

    Args:
        config: The model's config.json.
        tensor: Name of the norm's scale.
    """
    return float(family(config) in ONE_PLUS and not _PLAIN.search(tensor))
