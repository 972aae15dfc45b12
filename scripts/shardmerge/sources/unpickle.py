"""Pickled weights written as safetensors, and nothing of the pickle run.

torch's own loader of weights reads them (``weights_only=True``): it builds tensors and containers,
and refuses every other name that a pickle asks for. Storages are mapped, not read, so that only one
tensor at a time takes memory, where the file is of torch 1.6 or newer.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.files import atomic_path
from shardmerge.base.safetensors import write_header

_CODES = {getattr(torch, d.name): d.code for d in DTYPES.values() if d.bits % 8 == 0}
_REFUSED = re.compile(r"(?:GLOBAL|class|function) ([\w.]+)")


def convert(
    pickled: Path,
    output: Path,
    *,
    tied: bool,
    is_head: Callable[[str], bool],
    nested: bool = False,
) -> dict[str, str]:
    """Write the tensors of a pickle to a safetensors file, whole or not at all.

    Tensors that share memory are written each on its own. Only an output embedding that is the
    input embedding is left out, if the model ties them, as safetensors models have it.

    Args:
        pickled: A state dictionary that ``torch.save`` wrote.
        output: File to write.
        tied: Whether the model ties its embeddings (``tie_word_embeddings``).
        is_head: Tells by its name whether a tensor is the output embedding.
        nested: Whether the tensors may be under `state_dict`, beside what a training needs.

    Returns:
        The output embeddings that were left out: name to the tensor that they equal.

    Raises:
        UserError: If it holds anything but tensors, or a tensor of a kind that safetensors files
            cannot hold; names it.
    """
    tensors = _load(pickled)
    if nested and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    for name, tensor in tensors.items():
        _check(name, tensor, str(pickled))
    dropped = _aliases(tensors, is_head) if tied else {}
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    rows = [(name, _CODES[t.dtype], tuple(t.shape)) for name, t in kept.items()]
    with atomic_path(output) as part, open(part, "xb") as file:
        file.write(write_header(rows, {"format": "pt"} | dropped))
        for tensor in kept.values():
            flat = tensor.detach().contiguous().reshape(-1)
            if flat.numel():
                file.write(memoryview(flat.view(torch.uint8).numpy()))
    return dropped


def _load(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        mapped = zipfile.is_zipfile(path)  # older files cannot be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        names = _REFUSED.findall(str(error))
        asks = f": it asks for {names[0]}" if names else ""
        raise UserError(
            f"holds more than tensors{asks}, so it is not loaded",
            str(path),
            "A pickle can run any program. Use a safetensors version of this model, from a source "
            "that you trust.",
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", str(path)) from None
    except Exception as error:  # whatever a broken pickle makes torch raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"is no checkpoint that torch reads ({first})", str(path)) from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"holds a {type(found).__name__}, no table of tensors", str(path))
    return found


def _check(name: Any, tensor: Any, where: str) -> None:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise UserError(
            f"holds {name!r}, a {type(tensor).__name__} and no tensor",
            where,
            "Only state dictionaries of models are converted, not training checkpoints.",
        )
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.dtype not in _CODES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"has a tensor {name!r} ({kind}) that cannot be converted", where)


def _aliases(tensors: Mapping[str, torch.Tensor], is_head: Callable[[str], bool]) -> dict[str, str]:
    """Return the output embeddings that are another tensor: same memory, same shape."""
    first: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        if not is_head(name):
            first.setdefault(_place(tensor), name)
    return {
        name: first[_place(tensor)]
        for name, tensor in tensors.items()
        if is_head(name) and _place(tensor) in first
    }


def _place(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
