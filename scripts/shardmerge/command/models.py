"""What a model says of itself before anything is merged: type, size, shape, base."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base.dtypes import DTYPES, tensor_bytes
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, near_path, parse_object, read_bytes
from shardmerge.base.safetensors import read_header
from shardmerge.recipe.references import parse_reference
from shardmerge.sources.checkpoint_files import CONFIG, INDEX, follows_index, weight_files

_FRONT = re.compile(r"\A---\n(.*?)^---$", re.DOTALL | re.MULTILINE)
_CARD = "README.md"
_MOST_CARD = 1 << 20


@dataclass(frozen=True)
class Candidate:
    """What was found.

    Args:
        name: As it was given.
        reference: As a recipe in the project's folder writes it.
        architecture: The kind of model, such as ``llama``.
        layers: Its number of layers.
        width: Its hidden size.
        vocabulary: Its number of tokens.
        dtype: Type of most of its weights, as recipes write it.
        size: Bytes of its weights.
        base: What its card says that it was made from, or None.
    """

    name: str
    reference: str
    architecture: str
    layers: Any
    width: Any
    vocabulary: Any
    dtype: str
    size: int
    base: str | None


def look(name: str, project: Path, say: Callable[[str], None]) -> Candidate:
    """Return what a model says of itself, from headers and small files alone.

    Args:
        name: A folder, or ``owner/name`` of the Hub.
        project: Folder of the recipe, which a folder is written relative to.
        say: Takes a line now and then.

    Raises:
        UserError: If it is neither, or not a model of safetensors.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        tensors = _local_tensors(folder)
        card = _read_card(folder / _CARD)
        found = load_json(folder / CONFIG), tensors, _base_of(card)
        return _model(name, _relative(folder, project), *found)
    reference = parse_reference(name, "the model")
    if not reference.is_hub_name:
        raise UserError(f"there is no folder {name!r}", hint=near_path(folder))
    from shardmerge.sources import hub
    from shardmerge.sources.locking import lock_hub

    locked = lock_hub(reference.path, reference.revision, progress=say)
    tensors = {key: (t.dtype, tuple(t.shape)) for key, t in locked.tensors.items()}
    base = hub.base_model(reference.path, reference.revision, progress=say)
    return _model(name, name, locked.config, tensors, base)


def _model(
    name: str,
    reference: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    base: str | None,
) -> Candidate:
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, Mapping) else config
    sizes: Counter[str] = Counter()
    for dtype, shape in tensors.values():
        sizes[dtype] += tensor_bytes(dtype, shape)
    return Candidate(
        name=name,
        reference=reference,
        architecture=str(config.get("model_type")),
        layers=config.get("num_hidden_layers"),
        width=config.get("hidden_size"),
        vocabulary=config.get("vocab_size"),
        dtype=DTYPES[sizes.most_common(1)[0][0]].name,
        size=sizes.total(),
        base=base,
    )


def _local_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    names = [path.name for path in folder.iterdir()]
    weight_map = None
    if follows_index(names):
        weight_map = parse_object(read_bytes(folder / INDEX), str(folder / INDEX)).get("weight_map")
    files = weight_files(names, weight_map if isinstance(weight_map, dict) else None, str(folder))
    headers = [read_header(folder / file) for file in files]
    return {n: (e.dtype, e.shape) for header in headers for n, e in header.tensors.items()}


def _read_card(path: Path) -> Mapping[str, Any]:
    """Return the metadata of a model card; nothing where it has none that can be read."""
    import yaml

    try:
        text = read_bytes(path, _MOST_CARD).decode()
        data = yaml.safe_load(match[1]) if (match := _FRONT.search(text)) else None
    except (UserError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _base_of(card: Mapping[str, Any]) -> str | None:
    """Return the one base that a card's metadata names, if it can be a model's name."""
    base = card.get("base_model")
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    return base if isinstance(base, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)*", base) else None


def _relative(folder: Path, project: Path) -> str:
    """Return a folder as the recipe's readers, who start in its folder, find it."""
    if folder.is_absolute():
        return str(folder)
    return os.path.relpath(folder, project) if project.resolve() != Path.cwd() else str(folder)
