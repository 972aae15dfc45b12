"""Folders with weights of their own in a stage's model: merged where all models have them."""

from __future__ import annotations

from shardmerge.base.weightfolders import folder_of
from shardmerge.compose.models import Model
from shardmerge.compose.parts import Assembly, FolderMerge, Part, Piece


def main_tensors(model: Model) -> list[str]:
    """Return the tensors of a model that are of none of its folders."""
    return [name for name in model.table if "/" not in name or not folder_of(name)]


def add_folders(result: Assembly, piece: Piece) -> None:
    """Add the tensors of the models' folders.

    Where all models have the same tensors in a folder, these are merged. Else those of the model
    that the output follows stay as they are, and what only other models have is left out.

    Args:
        result: Takes the tensors, and what became of each folder.
        piece: The slice that they count as part of: the first one, whose lead gives config.json
            and the small files of folders.
    """
    tables = [_by_folder(model) for model in piece.models]
    lead = piece.models[piece.lead]
    for folder in sorted({name for table in tables for name in table}):
        own = tables[piece.lead].get(folder, {})
        having = [m.name for m, table in zip(piece.models, tables, strict=True) if folder in table]
        shared = bool(own) and all(table.get(folder) == own for table in tables)
        result.folders.append(FolderMerge(folder, lead.name, tuple(having), bool(own), shared))
        for name in own:
            result.parts[name] = _part(name, piece, shared=shared)


def _by_folder(model: Model) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of the tensors of each folder, by name."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, entry in model.table.items():
        if folder := folder_of(name):
            found.setdefault(folder, {})[name] = entry.shape
    return found


def _part(name: str, piece: Piece, *, shared: bool) -> Part:
    labels = (name,) * len(piece.models)
    if shared:
        return Part(piece, labels, labels, 0.0)
    names = [None] * len(piece.models)
    names[piece.lead] = name
    return Part(piece, tuple(names), labels, 0.0, copied=True)
