"""What a folder or repository holds of a model: which files count, and its table of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.filenames import all_plain, safe_name, safe_tensor
from shardmerge.base.files import line_of
from shardmerge.base.safetensors import Header, TensorEntry
from shardmerge.base.weightfolders import FOLDER_PICKLE, folder_of, in_folder, weights_of_folders
from shardmerge.sources import adapter_config
from shardmerge.sources.lock import LockedTensor, as_in_files
from shardmerge.sources.store import TEMPLATES

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
#: What to do about a repository that has pickles only.
DOWNLOAD = (
    "Or fetch it yourself (`hf download REPOSITORY --local-dir FOLDER`), name FOLDER under "
    "`sources`, write `allow_pickle: true` and run `snakemake convert`."
)
#: What to do about a checkpoint that is a pickle.
DOWNLOAD_FILE = (
    "Take a safetensors version of it from a source that you trust. Or fetch it yourself, name the "
    "file under `sources`, write `allow_pickle: true` and run `snakemake convert`."
)
FIND = (
    "Use a safetensors conversion of it: another repository, or a revision such as `@refs/pr/1` if "
    f"a conversion waits there as a pull request. {DOWNLOAD}"
)
CONFIG = "config.json"
#: What to do about a checkpoint that is no language model.
BY_NAMES = (
    "Write `tensors: same` into the document to merge it by the names of its tensors, if it is no "
    "language model."
)
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5")
#: Beside the weights: configuration, tokenizer, templates, licence.
TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".spm")
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
#: What users of a model need besides config and tokenizer: for images, sound and sentences.
_SIDE = re.compile(
    r"(?:\w+_)?preprocessor_config\.json|processor_config\.json|modules\.json"
    r"|sentence_[\w-]+_config\.json|config_sentence_transformers\.json|router_config\.json"
)
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


def follows_index(names: Iterable[str]) -> bool:
    """Return whether the index says where a model's tensors are.

    The order is that of transformers: ``model.safetensors`` alone if it is there, whatever an
    index beside it says; else the files that the index names.

    Args:
        names: All files of the repository.
    """
    names = set(names)
    return INDEX in names and SINGLE not in names


def weight_files(
    names: Iterable[str],
    weight_map: Mapping[str, str] | None,
    where: str,
    pickled: str = FIND,
) -> list[str]:
    """Return the safetensors files that make up the model, sorted.

    Args:
        names: All files of the repository.
        weight_map: File of every tensor, from the index if the model ``follows_index``.
        where: What to say in errors.
        pickled: What to do if there are pickles only.

    Raises:
        UserError: If there are none, or it is not clear which.
    """
    names = set(names)
    if weight_map is not None:
        found = indexed_files(weight_map, names, where)
        if inner := next(filter(folder_of, found), None):
            message = f"has an {INDEX} that names {inner!r}, which is of a folder of its own"
            raise UserError(message, where)
        return found
    if SINGLE in names:
        return [SINGLE]
    shards = {name: match for name in names if (match := _SHARD.fullmatch(name))}
    if shards and len({match[2] for match in shards.values()}) == 1:
        count = int(next(iter(shards.values()))[2])
        if sorted(int(match[1]) for match in shards.values()) == list(range(1, count + 1)):
            return sorted(shards)
        raise UserError(f"has {len(shards)} of its {count} weight files", where,
                        "The model is not whole.")  # fmt: skip
    raise _no_weights(names, where, pickled)


def indexed_files(
    weight_map: Mapping[str, str], names: Iterable[str], where: str, index: str = INDEX
) -> list[str]:
    """Return the files that an index names, sorted.

    Args:
        weight_map: File of every tensor, from the index.
        names: The files that are there.
        where: What to say in errors.
        index: Name of the index.

    Raises:
        UserError: If one is not there.
    """
    found = sorted(set(weight_map.values()))
    there = set(names)
    if missing := [name for name in found if name not in there]:
        raise UserError(f"has an {index} that names {missing[0]!r}, which is not there", where,
                        "The model is not whole.")  # fmt: skip
    return found


def _no_weights(names: set[str], where: str, pickled: str) -> UserError:
    if "adapter_config.json" in names:
        return UserError("is an adapter (LoRA), not a model", where, "Write `MODEL+ADAPTER`.")
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth")) and "/" not in n)
    if pickles:
        return UserError(
            f"has its weights only as pickles ({pickles[0]}), which are never loaded here",
            where,
            pickled,
        )
    others = sorted(n for n in names if n.endswith((*_OTHER_WEIGHTS, ".safetensors")))
    held = f" (it has {others[0]})" if others else ""
    return UserError(f"has no {SINGLE} and no {INDEX}{held}", where, BY_NAMES if held else None)


def adapter_files(names: Iterable[str], where: str, pickled: str = DOWNLOAD) -> list[str]:
    """Return the files that make up a LoRA adapter: its configuration, then its weights.

    Args:
        names: All files of the repository.
        where: What to say in errors.
        pickled: What to do if there is a pickle only.

    Raises:
        UserError: If one is not there.
    """
    names = set(names)
    wanted = [adapter_config.CONFIG, adapter_config.WEIGHTS]
    for name in wanted:
        if name in names:
            continue
        if name == adapter_config.WEIGHTS and adapter_config.PICKLE in names:
            raise UserError(
                f"has its adapter only as a pickle ({adapter_config.PICKLE}), which is never "
                "loaded from there",
                where,
                pickled,
            )
        raise UserError(f"is no LoRA adapter: it has no {name}", where)
    return wanted


def model_files(names: Iterable[str], weights: Iterable[str]) -> list[str]:
    """Return the files that are locked, sorted: the weights, and the texts of the model.

    Weights in other formats, pickles among them, are not; nor is what a model does without.

    Args:
        names: All files of the repository.
        weights: Those that ``weight_files`` found.
    """
    weights = set(weights)
    return sorted(name for name in names if name in weights or _is_of_the_model(name))


def side_files(names: Iterable[str]) -> list[str]:
    """Return the files that tell how a model is used otherwise than as text in, text out; sorted.

    Args:
        names: Files of a model.
    """
    return sorted(name for name in names if _SIDE.fullmatch(name) or _is_of_a_folder(name))


def module_settings(names: Iterable[str]) -> list[str]:
    """Return the files that tell what modules come after the encoder, and how each works; sorted.

    Args:
        names: Files of a model.
    """
    return sorted(n for n in names if n == "modules.json" or n == f"{folder_of(n)}/{CONFIG}")


def folder_weights(names: Iterable[str], where: str) -> list[str]:
    """Return the weight files of a model's folders (``weightfolders``), sorted.

    Args:
        names: All files of the repository.
        where: What to say in errors.

    Raises:
        UserError: If a folder has its weights as a pickle only.
    """
    names = list(names)
    found = weights_of_folders(names)
    folders = set(map(folder_of, found))
    for name in weights_of_folders(names, FOLDER_PICKLE):
        if (folder := folder_of(name)) not in folders:
            raise UserError(
                f"has the weights of its folder {folder!r} only as a pickle ({name}), which is "
                "never loaded from there",
                where,
                "Load the model with sentence-transformers and save it again, which writes "
                f"{folder}/{SINGLE}.",
            )
    return found


def _is_of_a_folder(name: str) -> bool:
    """Whether a file is a text of a folder that a model has for one of its modules."""
    folder = folder_of(name)
    rest = name[len(folder) + 1 :]
    return bool(folder) and "/" not in rest and rest.endswith(TEXTS) and not rest.startswith(".")


def _is_of_the_model(name: str) -> bool:
    if _SIDE.fullmatch(name) or _is_of_a_folder(name):
        return True
    if name.startswith(".") or ("/" in name and not name.startswith(TEMPLATES)):
        return False
    if name.endswith(".index.json") and name != INDEX:
        return False
    return name.endswith(TEXTS) or name.startswith(LICENCES)


def parse_weight_map(index: Any, where: str, name: str = INDEX, text: str = "") -> dict[str, str]:
    """Return file by tensor from a parsed index of weight files.

    Args:
        index: What the JSON file holds.
        where: What to say in errors.
        name: The file's name.
        text: The file's text, so that errors can tell the line.

    Raises:
        UserError: If it is no index, or names files outside the model.
    """
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"has an {name} without a weight_map", where)
    if _is_plain(table):
        return dict(sorted(table.items()))
    return dict(_named(row, f"{where}/{name}", text) for row in sorted(table.items()))


def _is_plain(table: Mapping[str, Any]) -> bool:
    """Whether no row has to be looked at by itself: it has many tensors and few files."""
    if not all_plain(table) or {*map(type, table.values())} != {str}:
        return False
    try:
        for file in {*table.values()}:
            safe_name(file, None, "")
    except UserError:
        return False
    return True


def _named(row: tuple[str, Any], where: str, text: str) -> tuple[str, str]:
    """Return an index's row, tensor and file, whose names are harmless."""
    try:
        return safe_tensor(row[0], where), safe_name(row[1], None, where)
    except UserError as error:
        line = line_of(text, ("weight_map", row[0]))
        raise UserError(error.message, f"{where}:{line}" if line else where) from None


def tensor_table(
    headers: Mapping[str, Header], weight_map: Mapping[str, str] | None, where: str
) -> dict[str, LockedTensor]:
    """Return all tensors by name, as they lie in files; the index decides where there is one.

    Those of folders with weights of their own are called ``FOLDER/TENSOR``.

    Args:
        headers: By file.
        weight_map: File of every tensor, or None.
        where: What to say in errors.

    Raises:
        UserError: If index and headers disagree, or two files have a tensor of the same name.
    """
    folders = {file: header for file, header in sorted(headers.items()) if folder_of(file)}
    if weight_map is None:
        weight_map = {}
        for file, header in sorted(headers.items()):
            if file in folders:
                continue
            for tensor in header.tensors:
                safe_tensor(tensor, f"{where}/{file}")
                if tensor in weight_map:
                    raise UserError(
                        f"has tensor {tensor!r} both in {weight_map[tensor]} and in {file}", where
                    )
                weight_map[tensor] = file
    table = {}
    for tensor, file in sorted(weight_map.items()):
        entry = headers[file].tensors.get(tensor)
        if entry is None:
            raise UserError(
                f"has an {INDEX} that puts {tensor!r} into {file}, which lacks it", where
            )
        table[tensor] = locked_tensor(file, entry)
    for file, header in folders.items():
        for tensor, entry in sorted(header.tensors.items()):
            safe_tensor(tensor, f"{where}/{file}")
            table[in_folder(folder_of(file), tensor)] = locked_tensor(file, entry)
    return as_in_files(table)


def locked_tensor(file: str, entry: TensorEntry) -> LockedTensor:
    """Return a tensor of a file's header as locks have it."""
    return LockedTensor(file, entry.dtype, entry.shape, entry.begin, entry.end)
