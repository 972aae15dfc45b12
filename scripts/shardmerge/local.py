"""Sources in local folders: locked, and checked against their lock, by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from shardmerge import adapter_config
from shardmerge.errors import UserError
from shardmerge.files import load_json, write_json
from shardmerge.headers import MAX_HEADER_BYTES, Header, read_header, safe_name
from shardmerge.lock import LockedFile, LockedSource, LockedTensor

#: Up to this size a file is identified by its SHA-256, above by a sample of it.
FULL_HASH_BYTES = 64 << 20
_SAMPLE_BLOCKS = 64
_SAMPLE_BYTES = 64 << 10
#: What to do about weights that are pickled.
CONVERT = (
    "Its weights are pickled. Write `allow_pickle: true` into the configuration and run "
    "`snakemake convert`, which writes them as safetensors without running code that is in them."
)
_AUXILIARY = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe")
_INDEX = "model.safetensors.index.json"


class Identities:
    """Content identities of local files, remembered by path, size and times.

    A file that was only touched is read again and found unchanged.

    Args:
        cache: JSON file that holds what earlier runs found; may be absent.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, list] = {}
        self._changed = False
        if cache.exists():
            try:
                self._known = dict(load_json(cache))
            except UserError:
                self._known = {}

    def of(self, path: Path) -> LockedFile:
        """Return size and identity of a file: its SHA-256, or the sample of a large one.

        The sample is the SHA-256 of the size, the first blocks (for safetensors, the whole
        header) and 64 evenly spread blocks of 64 KiB.
        """
        stat = path.stat()
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        if (known := self._known.get(key)) and known[:3] == stamp:
            return LockedFile(stat.st_size, sha256=known[3], sample=known[4])
        if stat.st_size <= FULL_HASH_BYTES:
            file = LockedFile(stat.st_size, sha256=_sha256(path))
        else:
            file = LockedFile(stat.st_size, sample=_sample(path, stat.st_size))
        self._known[key] = [*stamp, file.sha256, file.sample]
        self._changed = True
        return file

    def save(self) -> None:
        """Write what was learnt to the cache."""
        if self._changed:
            write_json(self._cache, self._known)
            self._changed = False


def lock_folder(folder: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a model in a local folder.

    Args:
        folder: It holds config.json and safetensors files, with or without an index.
        reference: The model as the recipe names it, for messages.
        identities: Cache of content identities.

    Raises:
        UserError: If it is not a model, has only pickles, or its index and files disagree.
    """
    if not folder.is_dir():
        raise UserError(f"model {reference!r}: there is no folder {str(folder)!r}")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model {reference!r}: the folder {str(folder)!r} has no config.json",
            hint="It is a LoRA adapter: write `MODEL+ADAPTER`."
            if (folder / adapter_config.CONFIG).is_file()
            else None,
        )
    weights = _weight_files(folder, reference)
    tensors: dict[str, LockedTensor] = {}
    for name, wanted in weights.items():
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"model {reference!r}: the file {name!r} is missing",
                str(folder / _INDEX),
                "The model was not copied or downloaded whole.",
            )
        header = read_header(path)
        _add_tensors(tensors, name, header, wanted, str(folder / _INDEX))
    names = [*weights, *auxiliary_files(folder, weights)]
    files = {name: identities.of(folder / name) for name in sorted(names)}
    identities.save()
    return LockedSource(
        kind="local",
        repo=None,
        revision=None,
        commit=None,
        config=load_json(folder / "config.json"),
        files=files,
        tensors=dict(sorted(tensors.items())),
    )


def lock_adapter(folder: Path, reference: str, identities: Identities) -> LockedSource:
    """Return the lock of a LoRA adapter in a local folder.

    Args:
        folder: It holds adapter_config.json and adapter_model.safetensors.
        reference: The adapter as the recipe names it, for messages.
        identities: Cache of content identities.

    Raises:
        UserError: If a file is missing or broken, or it has only a pickle.
    """
    if not folder.is_dir():
        raise UserError(f"adapter {reference!r}: there is no folder {str(folder)!r}")
    files: dict[str, LockedFile] = {}
    for name in (adapter_config.CONFIG, adapter_config.WEIGHTS):
        if not (folder / name).is_file():
            pickled = (folder / adapter_config.PICKLE).is_file()
            raise UserError(
                f"adapter {reference!r}: the folder {str(folder)!r} has no {name}",
                hint=CONVERT if pickled and name == adapter_config.WEIGHTS else None,
            )
        files[name] = identities.of(folder / name)
    tensors: dict[str, LockedTensor] = {}
    header = read_header(folder / adapter_config.WEIGHTS)
    _add_tensors(tensors, adapter_config.WEIGHTS, header, None, str(folder))
    identities.save()
    return LockedSource(
        kind="local",
        repo=None,
        revision=None,
        commit=None,
        config=load_json(folder / adapter_config.CONFIG),
        files=files,
        tensors=dict(sorted(tensors.items())),
        role="adapter",
    )


def check_folder(
    folder: Path, locked: LockedSource, reference: str, lock: str, identities: Identities
) -> None:
    """Check that a folder still holds what its lock says.

    Raises:
        UserError: If a file is gone or has other content; names the first.
    """
    for name, file in locked.files.items():
        path = folder / name
        what = None
        if not path.is_file():
            what = "is gone"
        elif path.stat().st_size != file.size:
            what = f"has {path.stat().st_size} bytes where the lock has {file.size}"
        elif identities.of(path).identity != file.identity:
            what = "has another content than when it was locked"
        if what:
            raise UserError(
                f"model {reference!r}: {str(path)!r} {what}",
                lock,
                "Restore the file, or run `snakemake lock` to lock the model as it is now.",
            )
    identities.save()


def _weight_files(folder: Path, reference: str) -> Mapping[str, set[str] | None]:
    """Return the safetensors files of a model, each with the tensors that its index expects."""
    index = folder / _INDEX
    if index.is_file():
        table = load_json(index).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise UserError("has no weight_map", str(index))
        files: dict[str, set[str] | None] = {}
        for tensor, name in table.items():
            files.setdefault(safe_name(name, folder, str(index)), set()).add(tensor)
        return dict(sorted(files.items()))
    single = folder / "model.safetensors"
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise UserError(
            f"model {reference!r}: the folder {str(folder)!r} has no safetensors files",
            hint=CONVERT if pickles else None,
        )
    return {safe_name(p.name, folder, str(folder)): None for p in found}


def _add_tensors(
    tensors: dict[str, LockedTensor],
    name: str,
    header: Header,
    wanted: set[str] | None,
    index: str,
) -> None:
    for missing in sorted((wanted or set()) - set(header.tensors)):
        raise UserError(f"tensor {missing!r} is not in {name!r} as the index says", index)
    for tensor, entry in header.tensors.items():
        if wanted is not None and tensor not in wanted:
            continue
        if tensor in tensors:
            raise UserError(f"tensor {tensor!r} is in {tensors[tensor].file!r} and in {name!r}")
        tensors[tensor] = LockedTensor(name, entry.dtype, entry.shape, entry.begin, entry.end)


def auxiliary_files(folder: Path, weights: Mapping[str, object]) -> list[str]:
    """Return the small files of a model: configuration, tokenizer, licence; not these weights."""
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.is_file()
        and not p.name.startswith(".")
        and (p.suffix in _AUXILIARY or p.name.startswith(("LICENSE", "NOTICE")))
        and p.name not in weights
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sample(path: Path, size: int) -> str:
    digest = hashlib.sha256(json.dumps([size, _SAMPLE_BLOCKS, _SAMPLE_BYTES]).encode())
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        head = length if path.suffix == ".safetensors" and length <= MAX_HEADER_BYTES else 0
        digest.update(prefix + file.read(max(head, _SAMPLE_BYTES)))
        for i in range(_SAMPLE_BLOCKS):
            offset = (size - _SAMPLE_BYTES) * i // (_SAMPLE_BLOCKS - 1)
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, offset))
    return digest.hexdigest()
