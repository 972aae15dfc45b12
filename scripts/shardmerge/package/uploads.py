"""What of a model folder is uploaded: a list of what may go, not of what may not."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardmerge.base.errors import UserError, shortened
from shardmerge.base.files import load_json, read_text
from shardmerge.base.weightfolders import component_of, is_folder, weights_of_folders
from shardmerge.package.index import CHECKPOINT, PROVENANCE
from shardmerge.plan.paths import CHECKSUMS
from shardmerge.sources.checkpoint_files import CONFIG, INDEX, parse_weight_map
from shardmerge.sources.store import TEMPLATES

_ALLOWED = re.compile(
    r"\w[\w.+-]*\.(safetensors|json|ya?ml|md|txt|model|jinja|tiktoken|bpe|spm|svg|png)"
    r"|(LICENSE|LICENCE|NOTICE|USE_POLICY)[\w.+-]*|SHA256SUMS"
)
#: What an export or an adapter may have, in its folder and in those of its variants.
_EXPORTED = re.compile(
    r"([a-z0-9][\w-]*/)?\w[\w.+-]*"
    r"\.(gguf|safetensors|json|ya?ml|md|txt|model|jinja|tiktoken|bpe|spm)"
    r"|(LICENSE|LICENCE|NOTICE|USE_POLICY)[\w.+-]*|SHA256SUMS"
)
#: Allowed by its suffix, yet never part of a model.
_REFUSED = re.compile(r"\.(lock|log|part|tmp)(\.|$)|^(plan|verify)\.json$")


@dataclass(frozen=True)
class Upload:
    """A file to upload: its path in the repository, its place here, its bytes."""

    name: str
    path: Path
    size: int


def list_uploads(folder: Path) -> tuple[list[Upload], list[tuple[str, str]]]:
    """Return what of a model folder is uploaded, and what is not and why; both sorted by name.

    Args:
        folder: The model or checkpoint. Files directly in it count, chat templates in their own
            folder, and those of modules and components in theirs.

    Raises:
        UserError: If it is not a whole model, or has a link where a file should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("is not a folder", str(folder))
    uploads, left_out = [], []
    listed = _listed(folder) if _is_checkpoint(folder) else None
    for path in sorted(folder.iterdir()):
        counts = f"{path.name}/" == TEMPLATES or is_folder(path.name)
        if listed is not None:
            counts = path.name in set(map(component_of, listed))
        if counts and path.is_dir() and not path.is_symlink():
            entries = sorted(path.iterdir())
        else:
            entries = [path]
        for entry in entries:
            name = entry.relative_to(folder).as_posix()
            if why := _objection(entry):
                left_out.append((name, why))
            else:
                uploads.append(Upload(name, entry, entry.stat().st_size))
    names = {upload.name for upload in uploads}
    if listed is None:
        _check_whole(folder, names)
    else:
        _check_listed(folder, names, listed)
    return uploads, left_out


def list_export(folder: Path) -> tuple[list[Upload], list[tuple[str, str]]]:
    """Return the same of an export or an adapter: what its SHA256SUMS lists, and that file.

    Args:
        folder: It, as its packaging left it.

    Raises:
        UserError: If a file is missing, is a link, or is none that exports have.
    """
    sums = Path(folder) / CHECKSUMS
    names = [line.partition("  ")[2] for line in read_text(sums).splitlines()]
    uploads = []
    for name in sorted({*names, CHECKSUMS}):
        path = Path(folder) / name
        if not _EXPORTED.fullmatch(name) or ".." in name:
            raise UserError(
                f"lists {shortened(name)}, which is no kind of file that goes up", str(sums)
            )
        if path.parent.is_symlink():
            raise UserError("is a link; nothing is published", str(path.parent))
        if not os.path.lexists(path):
            raise UserError(
                "is not there", str(path), "Delete SHA256SUMS and run the workflow again."
            )
        if why := _objection(path, _EXPORTED):
            raise UserError(f"is {why}; nothing is published", str(path))
        uploads.append(Upload(name, path, path.stat().st_size))
    return uploads, []


def _objection(path: Path, allowed: re.Pattern[str] = _ALLOWED) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        raise UserError(
            "is a link, and what it leads to may lie outside of the model; nothing is published",
            str(path),
            "Put the file itself there, or remove the link.",
        )
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return "not a file"
    if _REFUSED.search(path.name) or not allowed.fullmatch(path.name):
        return "not a kind of file that models have"
    return None


def _check_whole(folder: Path, names: set[str]) -> None:
    if CONFIG not in names:
        raise UserError(f"has no {CONFIG}", str(folder), "Is this the folder of a model?")
    needed = {"model.safetensors"}
    if INDEX in names:
        needed = set(parse_weight_map(load_json(folder / INDEX), str(folder)).values())
    if missing := sorted(needed - names):
        raise UserError(f"lacks {missing[0]}", str(folder), "The model is not whole.")
    needed |= set(weights_of_folders(names))
    if more := sorted(n for n in names - needed if n.endswith(".safetensors")):
        raise UserError(f"has {more[0]}, which its index does not name", str(folder))


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of any kind, as its provenance tells."""
    with contextlib.suppress(UserError):  # of a model it is not looked at
        return load_json(folder / PROVENANCE).get(CHECKPOINT) is True
    return False


def _listed(folder: Path) -> set[str]:
    """Return the files that the checksums of a folder list."""
    return {line.partition("  ")[2] for line in read_text(folder / CHECKSUMS).splitlines()}


def _check_listed(folder: Path, names: set[str], listed: set[str]) -> None:
    """Check that the weights of a checkpoint are those that its checksums list."""
    if missing := sorted(listed - names):
        raise UserError(f"lacks {missing[0]}", str(folder), "The checkpoint is not whole.")
    if more := sorted(n for n in names - listed if n.endswith(".safetensors")):
        raise UserError(f"has {more[0]}, which {CHECKSUMS} does not list", str(folder))
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError("has no weights", str(folder))


def check_sums(folder: Path, digests: Mapping[str, str]) -> None:
    """Make sure that files are still those that the model's SHA256SUMS lists, if it has one.

    Args:
        folder: The model.
        digests: SHA-256 in hexadecimal by name, as the files are now.

    Raises:
        UserError: If one has changed since.
    """
    if CHECKSUMS not in digests:
        return
    for name, wanted in known_sums(folder).items():
        if digests.get(name, wanted) != wanted:
            raise UserError(
                f"is not the file any more that {CHECKSUMS} lists; nothing is published",
                str(folder / name),
                "Build and verify the model again.",
            )


def known_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 that a folder's SHA256SUMS lists by name, none if it has no such file."""
    if not (folder / CHECKSUMS).is_file():
        return {}
    rows = [line.partition(" ") for line in read_text(folder / CHECKSUMS).splitlines()]
    return {name.lstrip(" *"): wanted for wanted, _, name in rows}
