"""Which files make up a checkpoint of any kind: one file, a folder, a folder with components.

Components are folders with weights of their own, as `unet` and `vae` of a diffusers pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from shardmerge.base.errors import UserError
from shardmerge.base.filenames import safe_name, safe_tensor
from shardmerge.base.printable import is_printable
from shardmerge.base.safetensors import Header
from shardmerge.base.weightfolders import (
    COMPONENT_INDEX,
    STEMS,
    component_of,
    in_folder,
    is_component,
)
from shardmerge.recipe.references import WEIGHT_ENDS
from shardmerge.sources.checkpoint_files import (
    LICENCES,
    TEXTS,
    indexed_files,
    locked_tensor,
    parse_weight_map,
)
from shardmerge.sources.lock import LockedTensor, as_in_files

#: What tells that a folder is a diffusers pipeline, whose own files are other forms of the parts.
PIPELINE_INDEX = "model_index.json"
#: Files that are made anew beside a result, or are about the files of weights that were.
_OWN = ("provenance.json", "conversion.json")
_ENDING = ".safetensors"

#: Returns the parsed JSON of a file.
ReadJson = Callable[[str], object]


def single_weights(names: Collection[str], where: str, pickled: str) -> list[str]:
    """Return the file of a checkpoint that is one file.

    Args:
        names: That file.
        where: What to say in errors.
        pickled: What to do about a pickle.

    Raises:
        UserError: If it is no safetensors file.
    """
    (name,) = names
    if not name.endswith(_ENDING):
        raise UserError("is a pickle, which is never loaded here", where, pickled)
    return [name]


def checkpoint_weights(names: Collection[str], read: ReadJson, where: str) -> list[str]:
    """Return the safetensors files that make up a checkpoint, sorted.

    Args:
        names: All files of the source.
        read: Returns the content of an index.
        where: What to say in errors.

    Raises:
        UserError: If there are none, or it is not clear which.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, rest = name.rpartition("/")
        if rest.lower().endswith(WEIGHT_ENDS) and _counts(folder, rest, names):
            folders.setdefault(folder, []).append(name)
    found = []
    for folder, files in sorted(folders.items()):
        found += _of_folder(folder, files, names, read, where)
    if not found:
        lost = weights_beside(names, found)
        raise UserError(
            "has no safetensors files" + (" that belong to it" if lost else ""),
            where,
            f"Merge a file by itself, such as {lost[0]}." if lost else None,
        )
    return sorted(found)


def weights_beside(names: Collection[str], weights: Collection[str]) -> list[str]:
    """Return the safetensors files that are no part of a checkpoint, sorted: variants, others.

    Args:
        names: All files of the source.
        weights: Those that ``checkpoint_weights`` found.
    """
    files = {name for name in names if name.endswith(_ENDING) and is_printable(name)}
    return sorted(files - {*weights})


def _counts(folder: str, file: str, names: Collection[str]) -> bool:
    """Whether a file of weights is of the checkpoint."""
    if file.startswith("."):
        return False
    return PIPELINE_INDEX not in names if not folder else "/" not in folder and is_component(folder)


def _of_folder(
    folder: str,
    files: list[str],
    names: Collection[str],
    read: ReadJson,
    where: str,
) -> list[str]:
    """Return the weight files of a folder: whole, else as an index says, else all at the top."""
    for stem in STEMS:
        single = in_folder(folder, f"{stem}{_ENDING}")
        if single in files:
            return [single]
        index = in_folder(folder, f"{stem}{COMPONENT_INDEX}")
        if index in names:
            weight_map = parse_weight_map(read(index), where, index)
            inner = {in_folder(folder, file) for file in weight_map.values()}
            return indexed_files({file: file for file in inner}, names, where, index)
    weights = [name for name in files if name.endswith(_ENDING)]
    if not folder and weights:
        return weights
    if not weights:
        of = f" of its folder {folder!r}" if folder else ""
        raise UserError(
            f"has the weights{of} only as a pickle ({files[0]}), which is never loaded here",
            where,
            f"Name the pickle by itself, as `model: FOLDER/{files[0]}`, write `allow_pickle: true` "
            "into the configuration and run `snakemake convert`.",
        )
    wanted = " or ".join(f"{folder}/{stem}{_ENDING}" for stem in STEMS)
    raise UserError(
        f"has weights in its folder {folder!r}, but neither {wanted} nor an index of them",
        where,
        f"Rename the variant that you mean ({weights[0]}), or merge this file by itself.",
    )


def checkpoint_files(names: Iterable[str], weights: Collection[str]) -> list[str]:
    """Return the files that are locked of a checkpoint, sorted: weights, and texts beside them.

    Args:
        names: All files of the source.
        weights: Those that ``checkpoint_weights`` found.
    """
    return sorted(name for name in names if name in weights or _is_text(name))


def _is_text(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if file.startswith(".") or file.endswith(".index.json") or name in _OWN:
        return False
    if folder and ("/" in folder or not is_component(folder)):
        return False
    return file.endswith(TEXTS) or (not folder and file.startswith(LICENCES))


def checkpoint_table(
    headers: Mapping[str, Header], where: str, *, alone: bool
) -> dict[str, LockedTensor]:
    """Return all tensors of a checkpoint by name, as they lie in files.

    Those of components are called ``FOLDER/TENSOR``.

    Args:
        headers: By file.
        where: What to say in errors.
        alone: Whether a file is all of the checkpoint, whatever folder it is in.

    Raises:
        UserError: If two files have a tensor of the same name.
    """
    table: dict[str, LockedTensor] = {}
    for file, header in sorted(headers.items()):
        safe_name(file, None, where)
        for tensor, entry in header.tensors.items():
            safe_tensor(tensor, f"{where}/{file}", any_name=True)
            full = in_folder("" if alone else component_of(file), tensor)
            if full in table:
                raise UserError(
                    f"has tensor {tensor!r} both in {table[full].file} and in {file}",
                    where,
                    "Name the one file that you mean, with its folder in front.",
                )
            table[full] = locked_tensor(file, entry)
    return as_in_files(table)
