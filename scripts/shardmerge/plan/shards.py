"""Which output tensor goes into which shard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.dtypes import bytes_of
from shardmerge.base.weightfolders import (
    FOLDER_WEIGHTS,
    STEMS,
    component_of,
    in_folder,
    own_name,
)
from shardmerge.compose.models import Place


def group(
    tensors: list[OutputTensor],
    places: Mapping[str, Place],
    max_shard_size: int | None,
    usual: int,
) -> list[list[OutputTensor]]:
    """Return the tensors of every shard, in the order of the shards and of their data.

    Args:
        tensors: All tensors of the model.
        places: Where each stands among the files whose layout is followed.
        max_shard_size: Bytes of data that a shard may have (a larger tensor gets one of its own),
            or None to put tensors together as those files do.
        usual: Bytes that a shard may have which holds parts of files of several slices.
    """
    ordered = sorted(tensors, key=lambda t: (*places[t.name], t.name))
    if max_shard_size is not None:
        return _pack([[t] for t in ordered], lambda a, b: True, max_shard_size)
    runs = itertools.groupby(ordered, key=lambda t: places[t.name][0])
    files = [list(run) for _, run in runs]
    # Files of one slice stay as they are; what slices take of files is little at times.
    return _pack(files, lambda a, b: places[a.name][0][:1] != places[b.name][0][:1], usual)


def _pack(
    runs: list[list[OutputTensor]],
    may_join: Callable[[OutputTensor, OutputTensor], bool],
    limit: int,
) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = []
    size = 0
    for run in runs:
        bytes_ = sum([bytes_of(t.dtype, t.shape) for t in run])
        if not shards or not may_join(shards[-1][-1], run[0]) or size + bytes_ > limit:
            shards.append([])
            size = 0
        shards[-1] += run
        size += bytes_
    return shards


def shards_of(
    tensors: Sequence[OutputTensor],
    places: Mapping[str, Place],
    max_shard_size: int | None,
    usual: int,
    folders: Mapping[str, str],
    *,
    checkpoint: bool = False,
) -> dict[str, list[OutputTensor]]:
    """Return the tensors of every shard by its name relative to the model's folder.

    Folders with weights of their own have one shard each; those of a checkpoint have shards as the
    model has, under the names that its files have.

    Args:
        tensors, places, max_shard_size, usual: As of ``group``.
        folders: The folder of each tensor, "" for the model's own.
        checkpoint: Whether it is a checkpoint of any kind.
    """
    found: dict[str, list[OutputTensor]] = {} if checkpoint else {"": []}
    for tensor in tensors:
        found.setdefault(folders[tensor.name], []).append(tensor)
    shards: dict[str, list[OutputTensor]] = {}
    for folder, own in sorted(found.items()):
        if folder and not checkpoint:
            own.sort(key=lambda t: (*places[t.name], t.name))
            shards[f"{folder}/{FOLDER_WEIGHTS}"] = own
            continue
        groups = group(own, places, max_shard_size, usual)
        names = shard_names(len(groups), _stem(places[own[0].name]) if checkpoint else "model")
        shards |= {in_folder(folder, n): g for n, g in zip(names, groups, strict=True)}
    return shards


def _stem(place: Place) -> str:
    """Return what the files of a checkpoint's result are called, after those of its source."""
    file = place[0][-1][1].rpartition("/")[2]
    return max((stem for stem in STEMS if file.startswith(stem)), key=len, default=STEMS[0])


def as_stored(tensors: Sequence[OutputTensor], file: str) -> tuple[OutputTensor, ...]:
    """Return tensors under the names that they have in their file.

    Args:
        tensors: Of one file.
        file: Its name relative to the model's folder.
    """
    if folder := component_of(file):
        tensors = [replace(one, name=own_name(one.name, folder)) for one in tensors]
    return tuple(tensors)


def shard_names(count: int, stem: str = "model") -> list[str]:
    """Return the shards' file names as transformers expects them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
