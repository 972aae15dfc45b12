"""Models whose tokens have other ids than those of the model that they are made of."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def write_renumbered(
    source: Path,
    target: Path,
    extend: Callable[[dict[str, Any], int], int],
    rows: Callable[[torch.Tensor, Mapping[str, int]], torch.Tensor],
) -> Path:
    """Write a model that is the same by other ids: tokens shuffled, and more at the end.

    Args:
        source: A model.
        target: Folder to write.
        extend: Adds tokens to a tokenizer.json, from an id on, and returns how many.
        rows: Returns their rows of an embedding, given that and the ids that tokens had.
    """
    shutil.copytree(source, target)
    table = json.loads((target / "tokenizer.json").read_text())
    vocab = table["model"]["vocab"]
    ids = list(range(len(vocab)))
    random.Random(3).shuffle(ids)
    table["model"]["vocab"] = {token: ids[i] for token, i in vocab.items()}
    for row in table["added_tokens"]:
        row["id"] = ids[row["id"]]
    added = extend(table, len(ids))
    (target / "tokenizer.json").write_text(json.dumps(table))
    order = torch.tensor(ids).argsort()
    for path in sorted(target.glob("*.safetensors")):
        tensors = load_file(path)
        for name in TABLES:
            if name in tensors:
                whole = tensors[name]
                tensors[name] = torch.cat([whole[order], rows(whole, vocab)])
        save_file(tensors, path, {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["vocab_size"] += added
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config[key] = ids[config[key]]
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors.index.json").unlink()
    return target
