"""LoRA adapters as peft writes them, made without peft."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none"}


def factors(
    modules: Mapping[str, tuple[int, int]], rank: int = 3, seed: int = 0, scale: float = 0.3
) -> dict[str, torch.Tensor]:
    """Return random factors for modules, given with their outputs and inputs."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in modules.items():
        for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            value = torch.randn(shape, generator=generator) * scale
            tensors[f"{PREFIX}{name}.lora_{part}.weight"] = value
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Write an adapter and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    (folder / "README.md").write_text("# An adapter\n")
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
