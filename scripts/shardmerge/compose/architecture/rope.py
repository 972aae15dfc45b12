"""Rotary position embeddings as config.json tells them, and the projections that they rotate.

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shardmerge.base.configvalues import config_value
from shardmerge.compose.architecture.names import layer_of

#: Base frequency where a config names none, as the models of transformers have it.
DEFAULT_BASE = 10000.0
#: Modules whose output is rotated, whole or in part.
_ROTATED = frozenset(
    """q_proj k_proj qkv_proj qkv Wqkv wqkv wq wk query_key_value W_pack q_b_proj
    kv_a_proj_with_mqa""".split()
)
_OTHER_TOWERS = re.compile(r"vision|visual|audio", re.IGNORECASE)
#: Shares of a head that are rotated, and base frequencies of some layers only.
_MORE = ("rotary_pct", "partial_rotary_factor", "rope_local_base_freq")


def is_rotated(tensor: str) -> bool:
    """Whether a tensor projects to queries or keys, which rotary embeddings rotate."""
    if _ROTATED.isdisjoint(tensor.split(".")[-3:]):
        return False
    return layer_of(tensor) is not None and not _OTHER_TOWERS.search(tensor)


def rope_of(config: Mapping[str, Any], model: str) -> str:
    """Return a model's rotary embedding in words; two that are equal rotate alike.

    Args:
        config: The model's config.json.
        model: As the recipe names it, for messages.

    Raises:
        UserError: If a value is of another kind than it must be.
    """
    where = f"config.json of {model!r}"
    text = {**config, **config_value(config, "text_config", "object", where, {})}
    named = ("rope_parameters", "rope_scaling")
    found = (config_value(text, key, "object", where, {}) for key in named)
    parameters = next(filter(None, found), {})
    if parameters and all(isinstance(value, Mapping) for value in parameters.values()):
        kinds = sorted(parameters.items())
        parts = [f"{kind}: {_words(value, text, where)}" for kind, value in kinds]
    else:
        parts = [_words(parameters, text, where)]
    more = {key: config_value(text, key, "number", where) for key in _MORE}
    parts += [f"{key} {value:g}" for key, value in more.items() if value is not None]
    return ", ".join(parts)


def _words(parameters: Mapping[str, Any], text: Mapping[str, Any], where: str) -> str:
    named = (parameters, "rope_theta"), (text, "rope_theta"), (text, "rotary_emb_base")
    bases = (config_value(table, key, "number", where) for table, key in named)
    base = next((value for value in bases if value is not None), DEFAULT_BASE)
    words = f"base {base:g}"
    rest = {k: v for k, v in parameters.items() if k != "rope_theta" and v is not None}
    kind = rest.pop("rope_type", None) or rest.pop("type", None) or "default"
    rest.pop("type", None)
    if kind == "default":
        return words
    options = ", ".join(f"{key} {value}" for key, value in sorted(rest.items()))
    return f"{words}, {kind} scaling ({options})" if options else f"{words}, {kind} scaling"
