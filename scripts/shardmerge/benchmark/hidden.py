"""What a model makes of prompts: where its hidden states point, before each of its layers.

With the operations, the type and the padding of mergekit-moe, so that routers are the same on the
same machine. The bits depend on the processor and on torch, as all that a model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.unfinished import Keeping, Unfinished
from shardmerge.benchmark.reading import (
    ReportBlocks,
    check_transformers,
    explained,
    load_language_model,
    reading_tokenizer,
)

if TYPE_CHECKING:
    import torch


def read_prompts(
    folder: Path,
    prompts: Sequence[Sequence[Sequence[str]]],
    mode: str,
    output: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    confirm: Callable[[], None] = lambda: None,
    progress: ReportBlocks = lambda done, total: None,
    keeping: Keeping = Keeping(),
) -> None:
    """Write a safetensors file with tensors ``layers.0`` and so on, float32 [experts, width].

    Args:
        folder: The model's.
        prompts: For each expert its positive and its negative prompts.
        mode: ``hidden_avg`` for the mean over a prompt's tokens, else its last one counts.
        output: The file.
        device: torch's name of where the model runs.
        threads: Of torch.
        confirm: Called before the file is put in place.
        progress: Told of how many experts the prompts are read.
        keeping: How the directions of the first experts are kept, and what may take them over.

    Raises:
        UserError: If transformers is missing or cannot load the model, or a value is not finite.
    """
    check_transformers("`gate_mode: hidden`", "; or write `gate_mode: cheap_embed`")
    import torch
    from safetensors.torch import save

    from shardmerge.engine.buffers import data_of

    torch.set_num_threads(threads)
    with explained("cannot read the prompts", folder):
        tokenizer = _padded_left(reading_tokenizer(folder))
        model = load_language_model(folder, "bfloat16", device)
    with Unfinished(output, keeping, confirm) as work:
        width = model.config.hidden_size
        gates = [torch.frombuffer(d, dtype=torch.float32).view(-1, width) for d in work.arrays]
        for done, sides in enumerate(prompts[len(gates) :], len(gates) + 1):
            with explained("cannot read the prompts", folder), torch.no_grad():
                gates.append(_direction(model, tokenizer, sides, mode).float().cpu())
            progress(done, len(prompts))
            work.keep({"experts": done}, map(data_of, gates), sum(one.nbytes for one in gates))
        layers = torch.stack(gates, dim=1)
        if not bool(torch.isfinite(layers).all()):
            work.restart()
            raise UserError("the model's hidden states are infinite or NaN", str(folder))
        found = {f"layers.{i}": layer.contiguous() for i, layer in enumerate(layers)}
        work.write(save(found, {"format": "pt"}))


def _padded_left(tokenizer: Any) -> Any:
    tokenizer.padding_side = "left"
    tokenizer.pad_token_id = tokenizer.bos_token_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _direction(
    model: Any, tokenizer: Any, sides: Sequence[Sequence[str]], mode: str
) -> torch.Tensor:
    """Return the direction of an expert's prompts for each layer, [layers, width]."""
    found = [_states(model, tokenizer, texts, mode) for texts in sides if texts]
    vector = found[0] - found[1] if found[1:] else found[0]
    return vector / vector.norm(p=2, dim=-1, keepdim=True).clamp(min=1e-8)


def _states(model: Any, tokenizer: Any, texts: Sequence[str], mode: str) -> torch.Tensor:
    """Return the mean over prompts of what enters each layer, [layers, width]."""
    import torch

    begin = tokenizer.bos_token or ""
    tokens = tokenizer(
        [begin + text for text in texts],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    output = model(**tokens.to(model.device), output_hidden_states=True, return_dict=True)
    states = torch.stack(output.hidden_states[:-1])  # layers, prompts, tokens, width
    average = mode == "hidden_avg"
    states = states.sum(dim=2) / states.shape[2] if average else states[:, :, -1, :]
    return states.sum(dim=1) / states.shape[1]
