"""Layers for multi-token prediction: they stand behind the last layer, and are none of its stack.

DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 2.2, https://arxiv.org/abs/2412.19437.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shardmerge.compose.architecture import config_keys as keys
from shardmerge.compose.architecture.names import layer_counts, layer_of

#: Modules of their own: Qwen3-Next and Qwen3.5 (``mtp``), MiMo (``mtp_layers``), ERNIE.
_MODULE = re.compile(r"(?:^|\.)mtp(?:_[a-z_]+)?\.")
#: What joins the last hidden state with the next token's embedding: no other layer has it.
_JOINS = re.compile(r"\.eh_proj\.")
_OTHER_TOWERS = re.compile(r"vision|visual|audio", re.IGNORECASE)


@dataclass(frozen=True)
class Behind:
    """Where a tensor of multi-token prediction stands.

    Args:
        stack: Whose last layer it stands behind, "" in a module of its own.
        count: Of the layers of the stack; models of other depths have the same behind them.
        number: Of its layer, from the last one on.
        rest: Its name within the layer, or the whole.
    """

    stack: str
    count: int = field(compare=False)
    number: int
    rest: str

    def named(self, counts: Mapping[str, int]) -> str:
        """Return its name behind so many layers, by stack."""
        count = counts.get(self.stack, self.count)
        return f"{self.stack}{count + self.number}.{self.rest}" if self.stack else self.rest


def behind(tensor: str, counts: Mapping[str, int]) -> Behind | None:
    """Return where a tensor of multi-token prediction stands, None for any other.

    Args:
        tensor: Its name.
        counts: The model's layers, as ``real_layers`` counts them.
    """
    if "mtp" in tensor and _MODULE.search(tensor):
        return Behind("", 0, 0, tensor)
    found = layer_of(tensor)
    if found is None or found[1] < counts.get(found[0], found[1] + 1):
        return None
    stack, number = found
    count, rest = counts[stack], tensor.removeprefix(f"{stack}{number}.")
    return Behind(stack, count, number - count, rest)


def real_layers(tensors: Iterable[str], config: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of layers of every stack without those for multi-token prediction.

    Args:
        tensors: All of a model.
        config: Its config.json.
    """
    names = list(tensors)
    counts = layer_counts(names)
    _, section = text_section(config)
    declared = next((n for n in map(section.get, keys.COUNT) if _is_count(n)), None)
    if declared is None:
        return counts
    named = any(_is_count(section.get(key)) for key in keys.PREDICTORS)
    for stack, count in counts.items():
        if count <= declared or _OTHER_TOWERS.search(stack) or _MODULE.search(stack):
            continue
        if named or any(n.startswith(stack) and _JOINS.search(n) for n in names):
            counts[stack] = declared
    return counts


def text_section(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return where a configuration is about the text decoder, and what it says there.

    Returns:
        The place with a dot behind it, "" for the whole, and its values.
    """
    for key in keys.SECTIONS["text_decoder"]:
        if isinstance(section := config.get(key), Mapping):
            return f"{key}.", section
    return "", config


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0
