"""A finished model's folder against its own checksums and provenance; no plan is needed.

So a model can be checked that was copied or downloaded. What it shows is that nothing changed since
the model was verified and summed up, not who made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.digest import is_digest
from shardmerge.base.errors import UserError
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import load_json, read_bytes
from shardmerge.base.hashing import sha256_streamed
from shardmerge.package.index import PROVENANCE, UNTOLD
from shardmerge.sources.checkpoint_files import INDEX

SUMS = "SHA256SUMS"
_SLOW = 1 << 30  # bytes that take long enough to be told of


#: Where finished folders lie in one of results.
_PLACES = ("model", "adapter", "exports/*")


@dataclass(frozen=True)
class Finished:
    """What a folder is found to be.

    Args:
        files: Names of the model's files.
        size: Their bytes.
        wrong: A sentence for each thing that is not as it must be.
        others: Names of files that are not the model's and harm nothing.
    """

    files: tuple[str, ...]
    size: int
    wrong: tuple[str, ...]
    others: tuple[str, ...]


def finished_folders(folder: Path) -> list[Path]:
    """Return the folders with checksums that are meant: this one, or those of a result."""
    if (folder / SUMS).is_file():
        return [folder]
    below = [path for place in _PLACES for path in sorted(folder.glob(place))]
    return [path for path in below if (path / SUMS).is_file()] or [folder]


def check_finished(folder: Path, say: Callable[[str], None] = lambda line: None) -> Finished:
    """Read all files of a model and compare them with its checksums and provenance.

    Args:
        folder: The model's.
        say: Takes a line before a file that takes long.

    Raises:
        UserError: If the folder's own lists cannot be read.
    """
    sums = read_sums(folder)
    wrong, size = [], 0
    for name, sha256 in sums.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
            continue
        size += (length := path.stat().st_size)
        if length >= _SLOW:
            say(f"reading {name}, {length / 1e9:.1f} GB")
        if (found := sha256_streamed(path)) != sha256:
            wrong.append(f"{name} has the SHA-256 {found}, not {sha256}")
    wrong += _compared(sums, _outputs(folder / PROVENANCE))
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    extra = sorted(present - {*sums, SUMS})
    weights = [name for name in extra if _is_loaded(name)]
    wrong += [f"{name} is a weight file that is not part of it" for name in weights]
    others = tuple(name for name in extra if name not in weights)
    return Finished(tuple(sums), size, tuple(wrong), others)


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a folder's SHA256SUMS lists.

    Raises:
        UserError: If there is none, or a line is not one of ``sha256sum``'s or leads elsewhere.
    """
    path = folder / SUMS
    if not path.is_file():
        hint = "Name a finished model, adapter or export, or its folder of results: results/NAME."
        raise UserError(f"has no {SUMS}", str(folder), hint)
    sums: dict[str, str] = {}
    lines = read_bytes(path).decode(errors="surrogateescape").split("\n")
    for number, line in enumerate(filter(None, lines), 1):
        where = f"{path}:{number}"
        sha256, gap, name = line.removeprefix("\\").partition("  ")
        if not gap or not is_digest(sha256):
            raise UserError("is not a line of checksums", where)
        if line.startswith("\\"):
            name = _unescaped(name)
        if safe_name(name, folder, where) in sums:
            raise UserError(f"lists {name!r} twice", where)
        sums[name] = sha256
    return sums


def _unescaped(name: str) -> str:
    parts = name.split("\\\\")
    return "\\".join(p.replace("\\n", "\n").replace("\\r", "\r") for p in parts)


def _outputs(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    outputs = load_json(path).get("outputs")
    if not isinstance(outputs, dict):
        raise UserError("has no table of outputs", str(path))
    return outputs


def _compared(sums: Mapping[str, str], outputs: Mapping[str, object]) -> list[str]:
    """Return where the two lists differ; a provenance that is missing is told by the sums."""
    told = {n: row.get("sha256") for n, row in outputs.items() if isinstance(row, dict)}
    names = {*told, *sums} - UNTOLD if outputs else ()
    return [
        f"{name} has another SHA-256 in {PROVENANCE} than in {SUMS}"
        for name in sorted(names)
        if told.get(name) != sums.get(name)
    ]


def _is_loaded(name: str) -> bool:
    """Return whether a loader of models may take a file for weights."""
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")) or name == INDEX
