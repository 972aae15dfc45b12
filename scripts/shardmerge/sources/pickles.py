"""Pickled checkpoints in local folders: which files they are, and where their conversions lie."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.digest import digest
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import atomic_path, load_json, write_json
from shardmerge.base.identities import Identities
from shardmerge.base.safetensors import read_header
from shardmerge.base.weightfolders import (
    FOLDER_PICKLE,
    FOLDER_WEIGHTS,
    folder_of,
    weights_of_folders,
)
from shardmerge.sources import adapter_config
from shardmerge.sources.checkpoint_files import (
    INDEX,
    indexed_files,
    model_files,
    parse_weight_map,
    tensor_table,
)
from shardmerge.sources.local import folder_files

#: Goes up when the same pickle is converted to other bytes.
CONVERTER_VERSION = 1
#: Written last: where it is and says what it should, the conversion beside it is whole.
RECORD = "conversion.json"
_SINGLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
_WEIGHTS = re.compile(r"pytorch_(model(?:-\d{5}-of-\d{5})?)\.bin")


@dataclass(frozen=True)
class Conversion:
    """A checkpoint that is converted to safetensors, once.

    Args:
        reference: The model or adapter as the recipe names it.
        folder: Where the pickles are.
        output: Folder of the conversion.
        weights: Name of each safetensors file, and of the pickle that it is made from.
        small: Names of the files that are copied.
        sizes: Bytes of each pickle.
        record: What RECORD must say: versions, and identities of the content.
        role: ``model``, ``adapter`` or ``checkpoint``.
    """

    reference: str
    folder: Path
    output: Path
    weights: Mapping[str, str]
    small: tuple[str, ...]
    sizes: Mapping[str, int]
    record: Mapping[str, object]
    role: str = "model"

    @property
    def done(self) -> bool:
        """Whether the conversion is there, and made from these very pickles."""
        path = self.output / RECORD
        return path.is_file() and load_json(path) == self.record

    @property
    def name(self) -> str:
        """Name of the conversion's folder."""
        return self.output.name

    @property
    def identity(self) -> str:
        """Digest of all that determines the conversion."""
        return digest(self.record)

    def pickle(self, stem: str) -> str:
        """Return the path of the pickle that a safetensors file is made from, by its stem."""
        return str(self.folder / self.weights[f"{stem}.safetensors"])

    def size(self, stem: str) -> int:
        """Return the bytes of that pickle."""
        return self.sizes[self.weights[f"{stem}.safetensors"]]

    @property
    def outputs(self) -> list[str]:
        """Paths of the safetensors files."""
        return [str(self.output / name) for name in self.weights]


def pickled_weights(folder: Path, role: str) -> dict[str, str]:
    """Return the pickles that a folder's weights are in: safetensors name to pickle name.

    It is empty where there are safetensors files, which are taken before pickles. Other pickles
    (of optimisers, of training arguments) are not looked at.

    Raises:
        UserError: If an index is none, or names files that are not there or lead out of the folder.
    """
    found = {"adapter": _adapter_pickle, "model": _model_pickles}.get(role, _no_pickles)(folder)
    for name in found.values():
        safe_name(name, folder, str(folder))
    return found


def _no_pickles(folder: Path) -> dict[str, str]:
    """Return nothing: a checkpoint's pickles are named one by one."""
    return {}


def _adapter_pickle(folder: Path) -> dict[str, str]:
    whole = (folder / adapter_config.WEIGHTS).exists()
    found = (folder / adapter_config.PICKLE).is_file() and not whole
    return {adapter_config.WEIGHTS: adapter_config.PICKLE} if found else {}


def _model_pickles(folder: Path) -> dict[str, str]:
    if any(folder.glob("*.safetensors")):
        return {}
    names = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
    if _SINGLE in names:  # transformers takes it whatever an index says (``follows_index``)
        names = [_SINGLE]
    elif (folder / _INDEX).is_file():
        weight_map = parse_weight_map(load_json(folder / _INDEX), str(folder), _INDEX)
        there = [n for n in set(weight_map.values()) if (folder / n).is_file()]
        names = indexed_files(weight_map, there, str(folder), _INDEX)
    matches = {name: _WEIGHTS.fullmatch(name) for name in names}
    found = {f"{match[1]}.safetensors": name for name, match in matches.items() if match}
    return found | _folder_pickles(folder) if found else {}


def _folder_pickles(folder: Path) -> dict[str, str]:
    """Return the same of the folders that have weights of their own."""
    names = folder_files(folder)
    pickles = {
        f"{folder_of(n)}/{FOLDER_WEIGHTS}": n for n in weights_of_folders(names, FOLDER_PICKLE)
    }
    return {weights: name for weights, name in pickles.items() if weights not in names}


def find_conversion(
    folder: Path,
    reference: str,
    role: str,
    output: Path,
    identities: Identities,
    file: str | None = None,
) -> Conversion | None:
    """Return the conversion that a folder needs, or None if it has safetensors files or no weights.

    Args:
        folder: Of a model, an adapter or a checkpoint.
        reference: As the recipe names it.
        role: ``model`` or ``adapter``.
        output: Where the conversion goes.
        identities: Cache of content identities.
        file: Of a checkpoint that is one file, its name.

    Raises:
        UserError: If its index is broken.
    """
    weights = _pickled_file(file) if file else pickled_weights(folder, role)
    if not weights:
        return None
    names = [] if file else folder_files(folder)
    small = [n for n in model_files(names, weights_of_folders(names)) if n != _INDEX]
    if role == "adapter":
        small = [name for name in small if name == adapter_config.CONFIG]
    locked = {name: identities.of(folder / name) for name in [*weights.values(), *small]}
    identities.save()
    record = {
        "version": CONVERTER_VERSION,
        "weights": {name: locked[pickle].identity for name, pickle in weights.items()},
        "files": {name: locked[name].identity for name in small},
    }
    sizes = {pickle: locked[pickle].size for pickle in weights.values()}
    return Conversion(reference, folder, output, weights, tuple(small), sizes, record, role)


def _pickled_file(name: str) -> dict[str, str]:
    """Return the one file of a checkpoint if it is a pickle, as ``pickled_weights`` does."""
    path = Path(name)
    return {} if path.suffix == ".safetensors" else {f"{path.stem}.safetensors": name}


def finish_conversion(
    conversion_folder: Path,
    source: Path,
    small: Iterable[str],
    weights: Iterable[str],
    record: Mapping[str, object],
) -> None:
    """Put beside converted weights what makes them a model: small files, index, record.

    Args:
        conversion_folder: Of the conversion.
        source: Folder of the pickles.
        small: Names of the files to copy.
        weights: Names of the safetensors files.
        record: What RECORD will say.

    Raises:
        UserError: If two files hold a tensor of the same name.
    """
    headers = {n: read_header(conversion_folder / n) for n in weights if not folder_of(n)}
    table = tensor_table(headers, None, str(source))
    for name in small:
        (conversion_folder / name).parent.mkdir(exist_ok=True)
        with atomic_path(conversion_folder / name) as part:
            shutil.copyfile(source / name, part)
    if len({tensor.file for tensor in table.values()}) > 1:
        size = sum(tensor.end - tensor.begin for tensor in table.values())
        weight_map = {name: tensor.file for name, tensor in table.items()}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(conversion_folder / INDEX, index)
    write_json(conversion_folder / RECORD, record)
