"""What an adapter_config.json says of a LoRA adapter, as far as merging depends on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shardmerge.base.configvalues import config_value
from shardmerge.base.errors import UserError, shortened
from shardmerge.base.patterns import Patterns

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
#: Settings that make an adapter something else than two factors a matrix, and what they are.
_OTHER_KINDS = {
    "layer_replication": "replicated layers",
    "trainable_token_indices": "single trained tokens",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
_BY_PEFT = "Merge it with peft (`merge_and_unload`) and name the result."
_LARGEST_RANK = 1 << 31
#: Scales are coefficients, which are rounded to float32.
_LARGEST_SCALE = 3.0e38
#: Ways to begin training that leave the model's own weights as they are.
_PLAIN_BEGINNINGS = ("gaussian", "eva", "orthogonal")


class AdapterConfig:
    """The configuration of an adapter that can be merged.

    Args:
        values: adapter_config.json, parsed.
        where: What to say in errors.

    Raises:
        UserError: If it is of another kind; says which.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where
        self._patterns: dict[str, Patterns] = {}
        kind = values.get("peft_type")
        if kind != "LORA":
            raise UserError(
                f"is an adapter of type {shortened(kind)}; only LORA adapters are merged here",
                where,
                _BY_PEFT,
            )
        for key, what in _OTHER_KINDS.items():
            if values.get(key):
                message = f"has {what} ({key}), which are not merged here"
                raise UserError(message, where, _BY_PEFT)
        beginning = values.get("init_lora_weights", True)
        if not isinstance(beginning, bool) and beginning not in _PLAIN_BEGINNINGS:
            raise UserError(
                f"began with init_lora_weights: {shortened(beginning)}, which changes the model's "
                "own weights too",
                where,
                "Save it as a plain LoRA adapter with peft's "
                "`path_initial_model_for_weight_conversion`.",
            )

    @property
    def made_for(self) -> str | None:
        """The model that it was trained on, as it says."""
        name = self._values.get("base_model_name_or_path")
        return shortened(name) if isinstance(name, str) and name else None

    def parameters(self, module: str) -> list[str]:
        """Return which parameters of a module it adapts by themselves, in the order of the module.

        transformers has what leads into experts first in them.

        Args:
            module: Its name in the model.
        """
        found = self._values.get("target_parameters") or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            what = shortened(found)
            raise UserError(f"has target_parameters: {what}, no list of names", self._where)
        last = {name.rpartition(".")[2] for name in found}
        ends = tuple(f".{name}" for name in found)
        fitting = (name for name in last if f".{module}.{name}".endswith(ends))
        return sorted(fitting, key=lambda name: (name.startswith("down"), name))

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the adapted layers keep their matrices as [inputs, outputs]."""
        return bool(self._values.get("fan_in_fan_out"))

    def scale(self, module: str) -> tuple[int, float]:
        """Return rank and scale of a module's update: alpha / rank, or alpha / sqrt(rank).

        rsLoRA: Kalajdzievski 2023, https://arxiv.org/abs/2312.03732.

        Args:
            module: Its name in the model.

        Raises:
            UserError: If a number is missing or none.
        """
        rank = self._number("r", "rank_pattern", module)
        alpha = self._number("lora_alpha", "alpha_pattern", module)
        if not 1 <= rank < _LARGEST_RANK or rank != int(rank):
            raise UserError(f"has rank {shortened(rank)} in {CONFIG}", self._where)
        root = math.sqrt(rank) if self._values.get("use_rslora") else rank
        scale = alpha / root
        if not abs(scale) <= _LARGEST_SCALE:
            raise UserError(f"scales its updates by {scale:g} in {CONFIG}", self._where)
        return int(rank), scale

    def _number(self, key: str, patterns: str, module: str) -> float:
        """Return a number for a module: of the first pattern that ends its name, or the default."""
        value = self._values.get(key)
        found = self._special(patterns)
        try:
            if (pattern := found.first(module)) is not None:
                value = self._values[patterns][pattern]
        except ValueError as error:
            raise UserError(f"has {patterns} that cannot be read: {error}", self._where) from None
        where = f"{self._where}, {CONFIG}"
        if value is None:
            raise UserError(f"has no {key}, which is a number", where)
        return config_value({key: value}, key, "number", where)

    def _special(self, key: str) -> Patterns:
        """Return the patterns of the modules whose rank or alpha is not the usual one."""
        if key not in self._patterns:
            table = config_value(self._values, key, "object", f"{self._where}, {CONFIG}", {})
            try:
                self._patterns[key] = Patterns(table)
            except ValueError as error:
                raise UserError(f"has {key} that cannot be read: {error}", self._where) from None
        return self._patterns[key]
