"""Folders of a model that have weights of their own, such as ``2_Dense`` of sentence-transformers.

Their tensors are called ``FOLDER/TENSOR`` wherever a model's tensors stand in one table. In the
file they have their own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

#: Names of such folders: a number and a kind, below a router with the route in front.
FOLDER = r"(?:[a-z]+_)?[0-9]{1,3}_[A-Za-z0-9_]{1,60}"
FOLDER_WEIGHTS = "model.safetensors"
FOLDER_PICKLE = "pytorch_model.bin"
_FOLDER = re.compile(FOLDER)


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


def own_name(tensor: str) -> str:
    """Return what a tensor is called in its file."""
    folder = folder_of(tensor)
    return tensor[len(folder) + 1 :] if folder else tensor


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
    return in_folder(place.parent.name if is_folder(place.parent.name) else "",
                     f"{place.stem}.safetensors")  # fmt: skip
