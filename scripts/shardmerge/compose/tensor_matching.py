"""Which tensors the models of a stage have in common; what keeps them from being merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.names import (
    is_derived,
    is_embedding,
    is_mask,
    is_optional,
    is_tied,
    is_vocabulary,
)
from shardmerge.compose.differences import advice, side_by_side
from shardmerge.compose.models import Model
from shardmerge.compose.parts import Part
from shardmerge.formats import CODE_TYPES


def complete(
    label: str,
    names: Sequence[str | None],
    models: Sequence[Model],
    columns: Sequence[Mapping[str, str]],
    where: str,
    follows: bool = False,
) -> tuple[str | None, ...] | None:
    """Return the tensor of each model that an output tensor is made from.

    A model whose embeddings are tied gives its input embedding for the output embedding. A bias
    that only some models have is made from those.

    Args:
        label: The tensor's name, for messages.
        names: Each model's tensor, None where it has none.
        models: The models.
        columns: All tensors of each, outside layers at least, as the first model spells them.
        where: Place of the slice.
        follows: Whether rows for tokens are brought to one tokenizer, so that they may be more or
            fewer.

    Returns:
        The tensors, or None for a buffer that nobody misses.

    Raises:
        UserError: If a tensor is missing that cannot be, or shapes differ.
    """
    if None in names:
        having = ((m, n) for m, n in zip(models, names, strict=True) if n is not None)
        if is_derived(label) or all(is_mask(n, m.table[n].shape) for m, n in having):
            return None
        if is_tied(label):
            names = [
                name or next((full for n, full in column.items() if is_embedding(n)), None)
                for name, column in zip(names, columns, strict=True)
            ]
        if None in names and not is_optional(label):
            raise _missing(label, names, models, where)
    named = zip(models, names, strict=True)
    shapes = [model.table[name].shape for model, name in named if name is not None]
    if shapes.count(shapes[0]) < len(shapes):
        _check_shapes(label, names, models, where, 1 if follows and is_vocabulary(label) else 0)
    return tuple(names)


def _check_shapes(
    label: str, names: Sequence[str | None], models: Sequence[Model], where: str, first: int
) -> None:
    """Refuse shapes that differ, from a first axis on."""
    named = zip(models, names, strict=True)
    shapes = [(model, model.table[name].shape) for model, name in named if name is not None]
    lead, wanted = shapes[0]
    for model, shape in shapes:
        if shape[first:] != wanted[first:]:
            raise UserError(
                f"tensor {label!r} has shape {list(wanted)} in {lead.name!r} but "
                f"{list(shape)} in {model.name!r}",
                where,
                advice(lead, model),
            )


def check_buffers(part: Part) -> None:
    """Check that tensors that are not all of floats may be taken from one of the models.

    Positions, masks and the like are those of the architecture. What could be codes is not: codes
    of one model mean nothing with another's scales.

    Raises:
        UserError: If it could be codes, or some of the models have floats.
    """
    entries = [model.table[name] for model, name in part.inputs]
    named = zip(part.inputs, entries, strict=True)
    if all(is_derived(name) or is_mask(name, entry.shape) for (_, name), entry in named):
        return
    if all(e.dtype not in CODE_TYPES and not DTYPES[e.dtype].floating for e in entries):
        return
    types = ", ".join(f"{m.table[name].dtype} in {m.name!r}" for m, name in part.inputs)
    raise UserError(
        f"tensor {part.lead[1]!r} cannot be merged: it has the type {types}",
        part.piece.where,
        "Such numbers may be codes of quantised weights (packed integers, or 8-bit floats with "
        "scales), which cannot be averaged. Merge models whose weights are stored as floats of 16 "
        "bits or more.",
    )


def _missing(
    label: str, names: Sequence[str | None], models: Sequence[Model], where: str
) -> UserError:
    has = models[next(i for i, name in enumerate(names) if name is not None)]
    lacks = models[names.index(None)]
    pair = (has, lacks) if models.index(has) < models.index(lacks) else (lacks, has)
    hint = advice(*pair) if side_by_side(*pair) else None
    if hint is None and (other := next((n for n in lacks.table if _same_end(n, label)), None)):
        hint = (
            f"{lacks.name!r} has {other!r}, which may be the same under another name; models that "
            "are merged must name their tensors alike."
        )
    return UserError(f"tensor {label!r} is in {has.name!r} but not in {lacks.name!r}", where, hint)


def _same_end(a: str, b: str) -> bool:
    return a.endswith(f".{b}") or b.endswith(f".{a}")
