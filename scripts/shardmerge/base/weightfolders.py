"""Folders of a model that have weights of their own, such as ``2_Dense`` of sentence-transformers.

Their tensors are called ``FOLDER/TENSOR`` wherever a model's tensors stand in one table. In the
file they have their own names. Checkpoints of any kind have such folders under any plain name, as
``unet`` and ``vae`` of diffusers: there the file alone tells which folder a tensor is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath

#: Names of such folders: a number and a kind, below a router with the route in front.
FOLDER = r"(?:[a-z]+_)?[0-9]{1,3}_[A-Za-z0-9_]{1,60}"
FOLDER_WEIGHTS = "model.safetensors"
FOLDER_PICKLE = "pytorch_model.bin"
#: Names of the folders that the files of a result may lie in, as a pattern: those of checkpoints.
COMPONENT = r"(?!(?:model|records|checks)/)[A-Za-z0-9][A-Za-z0-9_]{0,63}"
#: Folders of a result that hold its shards, and records about them.
_HOLDING = ("model", "records", "checks")
#: What weight files are called, less the number of a shard: by transformers, by diffusers.
STEMS = ("model", "diffusion_pytorch_model")
#: What an index of them is called behind that.
COMPONENT_INDEX = ".safetensors.index.json"
_FOLDER = re.compile(FOLDER)
_COMPONENT = re.compile(f"{COMPONENT}/")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")


def is_folder(name: str) -> bool:
    """Return whether a folder of that name belongs to a model."""
    return _FOLDER.fullmatch(name) is not None


def folder_of(name: str) -> str:
    """Return the folder that a file or a tensor of a model is of, "" if none.

    Args:
        name: Of a file relative to the model's folder, or of a tensor.
    """
    folder, slash, _ = name.partition("/")
    return folder if slash and is_folder(folder) else ""


def in_folder(folder: str, tensor: str) -> str:
    """Return what a tensor is called among all of a model; ``own_name`` inverts it."""
    return f"{folder}/{tensor}" if folder else tensor


def own_name(tensor: str, folder: str) -> str:
    """Return what a tensor of a folder ("" for none) is called in its file."""
    return tensor[len(folder) + 1 :] if folder else tensor


def is_component(name: str) -> bool:
    """Return whether the files of a result may lie in a folder of that name."""
    return _COMPONENT.fullmatch(f"{name}/") is not None


def component_of(file: str) -> str:
    """Return the folder that a file of a checkpoint or of a result lies in, "" if none."""
    folder, slash, _ = file.partition("/")
    return folder if slash and is_component(folder) else ""


def indexes_of(files: Iterable[str]) -> list[str]:
    """Return the names of the indexes of weight files: a file that is all of a folder needs none.

    Args:
        files: Of a result, relative to its folder.
    """
    shards = filter(None, map(_SHARD.fullmatch, files))
    return list(dict.fromkeys(f"{shard[1]}{COMPONENT_INDEX}" for shard in shards))


def weights_of_folders(names: Iterable[str], file: str = FOLDER_WEIGHTS) -> list[str]:
    """Return the weight files of a model's folders, sorted.

    Args:
        names: All files of the model.
        file: What the weight file of a folder is called.
    """
    return sorted(n for n in names if (folder := folder_of(n)) and n == f"{folder}/{file}")


def shard_name(path: object) -> str:
    """Return what a shard is called relative to its model's folder.

    Args:
        path: Of the shard, or of a record about it, which lies likewise.
    """
    place = PurePosixPath(str(path))
    return in_folder(folder_below(place), f"{place.stem}.safetensors")


def folder_below(path: PurePath) -> str:
    """Return the folder of a model that a shard, or a record about it, lies in; "" if in none."""
    name = path.parent.name
    within = is_component(name) and path.parent.parent.name in _HOLDING
    return name if within or is_folder(name) else ""
