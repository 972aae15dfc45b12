"""A finished model's folder against its own checksums and provenance; no plan is needed.

So a model can be checked that was copied or downloaded, from a stranger too. What it shows is that
nothing changed since the model was verified and summed up. Who made it, only a signature shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardmerge.base.digest import is_digest
from shardmerge.base.errors import UserError, shortened
from shardmerge.base.filenames import safe_name
from shardmerge.base.files import load_json, read_bytes, sha256_of
from shardmerge.base.hashing import sha256_streamed
from shardmerge.base.printable import printable
from shardmerge.package.index import PROVENANCE, UNTOLD
from shardmerge.plan.paths import CHECKSUMS as SUMS
from shardmerge.plan.paths import RECIPE, SIGNATURE

_SHOWN = 4  # sources that are named
_SLOW = 1 << 30  # bytes that take long enough to be told of
_MOST = 64 << 20  # bytes of checksums; a row takes a hundred
#: What the Hub, git and the Hub's client add to a folder, and what this workflow leaves in one.
_ADDED = re.compile(r"\.gitattributes|\.gitignore|\.(git|cache)/.*|(.*/)?\.snakemake_timestamp")
#: Ends of names of files that a loader of models may take, or run.
_LOADED = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".pkl"),
    *(".json", ".jinja", ".py", ".so", ".model", ".tiktoken", ".spm", ".bpe"),
)

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
        made: What its provenance tells, in a few words; None if it has none.
    """

    files: tuple[str, ...]
    size: int
    wrong: tuple[str, ...]
    others: tuple[str, ...]
    made: str | None = None


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
            wrong.append(f"{name} is {'no plain file' if os.path.lexists(path) else 'missing'}")
            continue
        size += (length := path.stat().st_size)
        if length >= _SLOW:
            say(f"reading {name}, {length / 1e9:.1f} GB")
        if (found := sha256_streamed(path)) != sha256:
            wrong.append(f"{name} has the SHA-256 {found}, not {sha256}")
    told = _provenance(folder, sums)
    if told is not None:
        wrong += [*_compared(sums, told), *_unlike(told, folder, sums)]
    links, extra = _unlisted(folder, sums)
    loaded = [name for name in extra if name.endswith(_LOADED)]
    wrong += [f"{printable(name)} is a link that leads out of the folder" for name in links]
    wrong += [f"{printable(name)} is not part of it, and a loader may take it" for name in loaded]
    others = tuple(printable(name) for name in extra if name not in loaded)
    made = told and words_on(told)
    return Finished(tuple(sums), size, tuple(wrong), others, made)


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a folder's SHA256SUMS lists.

    Raises:
        UserError: If there is none, or a line is not one of ``sha256sum``'s or leads elsewhere.
    """
    path = folder / SUMS
    if path.is_symlink() and folder.parent.name != "snapshots":
        raise UserError("is a link; a finished folder has the file itself", str(path))
    if not path.is_file():
        hint = "Name a finished model, adapter or export, or its folder of results: results/NAME."
        raise UserError(f"has no {SUMS}", str(folder), hint)
    sums: dict[str, str] = {}
    lines = read_bytes(path, _MOST).decode(errors="surrogateescape").split("\n")
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


def _unlisted(folder: Path, sums: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the links of a folder that lead out of it, and its files that its sums do not list.

    Links are not followed, so what they lead to is neither read nor named.
    """
    links, extra, known = [], [], {*sums, SUMS, SIGNATURE}
    for parent, below, names in os.walk(folder):
        for one in (*below, *names):
            path = Path(parent, one)
            name = path.relative_to(folder).as_posix()
            if _ADDED.fullmatch(name) or (one in below and not path.is_symlink()):
                continue
            if name not in known:
                (links if path.is_symlink() else extra).append(name)
    return sorted(links), sorted(extra)


def _provenance(folder: Path, sums: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Return what a folder's provenance says, None if it has none."""
    path = folder / PROVENANCE
    if not os.path.lexists(path):
        return None
    if PROVENANCE not in sums:
        raise UserError(f"is not listed by {SUMS}", str(path))
    if not path.is_file():
        raise UserError("is no plain file", str(path))
    found = load_json(path)
    if not isinstance(found.get("outputs"), dict):
        raise UserError("has no table of outputs", str(path))
    return found


def _unlike(told: Mapping[str, Any], folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Return where a provenance contradicts what lies here: its recipe, an export's model."""
    found = []
    recipe, model = told.get("recipe"), told.get("model")
    if isinstance(recipe, dict) and recipe.get("sha256") != sums.get(RECIPE, recipe.get("sha256")):
        found.append(f"{RECIPE} is another recipe than {PROVENANCE} tells of")
    beside = folder.parent.parent / "model" / PROVENANCE
    is_export = isinstance(model, dict) and folder.parent.name == "exports" and beside.is_file()
    if is_export and model.get("provenance_sha256") != sha256_of(beside):
        found.append("it is an export of another model than the one that lies beside it")
    return found


def words_on(told: Mapping[str, Any]) -> str:
    """Return in a few words what a provenance tells: what made it, of what.

    Args:
        told: Its JSON, which may be a stranger's.
    """
    tools = told.get("tools")
    version = tools.get("shardmerge") if isinstance(tools, dict) else told.get("shardmerge")
    sources, model = told.get("sources"), told.get("model")
    if isinstance(sources, dict) and sources:
        names = ", ".join(printable(shortened(name)) for name in list(sources)[:_SHOWN])
        more = f" and {len(sources) - _SHOWN} more" if len(sources) > _SHOWN else ""
        of = f" from {names}{more}"
    elif isinstance(model, dict):
        of = f" from the model of build {printable(shortened(str(model.get('build'))[:12]))}"
    else:
        of = ""
    name = printable(shortened(told.get("name")))
    return f"{name}, made by shardmerge {printable(str(version)[:20])}{of}"


def _compared(sums: Mapping[str, str], provenance: Mapping[str, Any]) -> list[str]:
    """Return where the two lists differ."""
    outputs = provenance["outputs"]
    told = {n: row.get("sha256") for n, row in outputs.items() if isinstance(row, dict)}
    names = {*told, *sums} - UNTOLD if outputs else ()
    return [
        f"{name} has another SHA-256 in {PROVENANCE} than in {SUMS}"
        for name in sorted(names)
        if told.get(name) != sums.get(name)
    ]
