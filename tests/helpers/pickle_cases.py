"""Checkpoints as torch pickles, and a pickle that would run a program."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from helpers.models import LLAMA, llama_shapes, random_tensors


class Trap:
    """An object that makes a file when it is unpickled by anything that runs pickles."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def saved(folder: Path, value: object, name: str = "pytorch_model.bin", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def pickled_model(folder: Path, files: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write a Llama as transformers did before safetensors; return its tensors."""
    folder.mkdir(parents=True)
    tensors = random_tensors(llama_shapes(2), seed)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 2}))
    (folder / "generation_config.json").write_text("{}")
    torch.save({"state": 1}, folder / "training_args.bin")
    names = list(tensors)
    step = -(-len(names) // files)
    table = {}
    for i in range(files):
        name = f"pytorch_model-{i + 1:05d}-of-{files:05d}.bin" if files > 1 else "pytorch_model.bin"
        part = {n: tensors[n] for n in names[i * step : (i + 1) * step]}
        saved(folder, part, name)
        table |= dict.fromkeys(part, name)
    if files > 1:
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return tensors
