"""Checkpoints of any kind: tensors are merged by their names, and nothing else is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from shardmerge.base.errors import UserError
from shardmerge.base.text import plural
from shardmerge.compose.architecture.fused import FusedPart
from shardmerge.compose.models import Model, Place
from shardmerge.compose.parts import Assembly, Part, Piece
from shardmerge.compose.stage_model import StageModel
from shardmerge.recipe.references import Reference
from shardmerge.recipe.stage import Stage

#: Tensors that an error tells of.
_SHOWN = 3


class CheckpointModel(StageModel):
    """A stage that merges checkpoints; arguments as of ``StageModel``."""

    @property
    def layer_counts(self) -> Mapping[str, int]:
        """Nothing: no layers are known."""
        return {}

    def folder(self, tensor: str) -> str:
        model, name = self.parts[tensor].lead
        return model.folder(name)

    def place(self, tensor: str) -> Place:
        """Return where a tensor stands: one that the lead lacks, behind the lead's last one."""
        own, lead = super().place(tensor), self._lead
        last = self._last.get(self.folder(tensor))
        if tensor in lead.table or last is None:
            return own
        files, begin = last
        return (own[0][0], *files), begin + own[1] + 1

    @property
    def _lead(self) -> Model:
        """The model whose files the result follows."""
        piece = next(iter(self.parts.values())).piece
        return piece.models[piece.lead]

    @cached_property
    def _last(self) -> Mapping[str, Place]:
        """Where the last tensor of each folder of the lead stands."""
        found: dict[str, Place] = {}
        for name in self._lead.table:
            folder, place = self._lead.folder(name), self._lead.place(name)
            found[folder] = max(found.get(folder, place), place)
        return found

    def _assemble(self) -> Assembly:
        return assemble_by_name(self.stage, self.context.model)

    def _fused(self) -> _NoFusedTensors:
        return _NoFusedTensors()

    def _copies(self, part: Part) -> bool:
        return part.copied

    def _check_used(self, tensor: str, part: Part) -> None:
        """Copy a tensor that one input alone has, if the method cannot do with one."""
        refused = self._refusal(tensor, part)
        if refused and len(part.used) > 1:
            raise UserError(
                refused.message,
                refused.where,
                "Write `tensors: intersection` to leave it out.",
            )
        if refused:
            self.assembly.parts[tensor] = replace(part, copied=True)


class _NoFusedTensors:
    """In place of what an architecture tells of tensors that several projections share."""

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[FusedPart, ...]:
        """Return nothing."""
        return ()


def assemble_by_name(stage: Stage, model_of: Callable[[Reference], Model]) -> Assembly:
    """Return the tensors of a merge of checkpoints.

    As in mergekit-pytorch, these are the tensors of the checkpoints that the document lists: of a
    base model that is not listed, no others are taken.

    Args:
        stage: The stage.
        model_of: Gives the model that a reference names.

    Raises:
        UserError: If a tensor is not in all of them and must be, or shapes differ.
    """
    (item,) = stage.slices
    references = [one.model for one in item.inputs]
    piece = Piece(
        number=0,
        inputs=item.inputs,
        models=tuple(map(model_of, references)),
        base=references.index(stage.base_model) if stage.base_model in references else None,
        levels=(stage.parameters,),
        where=item.where,
    )
    rows = {name: _having(piece, name) for name in _names(piece)}
    if stage.tensors == "intersection":
        rows = {name: names for name, names in rows.items() if None not in names}
    if stage.tensors == "same":
        _check_same(piece, rows)
    if not rows:
        raise UserError("no tensor is in all of the checkpoints", piece.where)
    _check_shapes(piece, rows)
    labels = len(piece.models)
    return Assembly({n: Part(piece, names, (n,) * labels, 0.0) for n, names in rows.items()})


def _names(piece: Piece) -> dict[str, None]:
    """Return the tensors of the listed checkpoints, those of the one that leads first."""
    pairs = list(zip(piece.inputs, piece.models, strict=True))
    listed = {name for one, model in pairs if one.listed for name in model.table}
    ordered = [pairs[piece.lead][1], *piece.models]
    return dict.fromkeys(name for model in ordered for name in model.table if name in listed)


def _having(piece: Piece, name: str) -> tuple[str | None, ...]:
    return tuple(name if name in model.table else None for model in piece.models)


def _check_same(piece: Piece, rows: Mapping[str, Sequence[str | None]]) -> None:
    lacking = [name for name, names in rows.items() if None in names]
    if lacking:
        names = rows[lacking[0]]
        having = [m.name for m, n in zip(piece.models, names, strict=True) if n is not None]
        others = [m.name for m, n in zip(piece.models, names, strict=True) if n is None]
        raise UserError(
            f"tensor {lacking[0]!r} is in {_listed(having)}, but not in {_listed(others)}"
            f"{_more(len(lacking) - 1)}",
            piece.where,
            "Write `tensors: intersection` to leave such tensors out, or `tensors: union` to merge "
            "them from the checkpoints that have them.",
        )


def _check_shapes(piece: Piece, rows: Mapping[str, Sequence[str | None]]) -> None:
    """Refuse tensors of one name whose shapes differ, and tell these side by side."""
    differing = [name for name, names in rows.items() if len(set(_shapes(piece, names))) > 1]
    if not differing:
        return
    told = []
    for name in differing[:_SHOWN]:
        models = [m.name for m, n in zip(piece.models, rows[name], strict=True) if n is not None]
        shapes = _shapes(piece, rows[name])
        pairs = zip(models, shapes, strict=True)
        told.append(f"{name!r} is " + ", ".join(f"{list(s)} in {m!r}" for m, s in pairs))
    raise UserError(
        f"{plural(len(differing), 'tensor')} of the same name have other shapes: "
        f"{'; '.join(told)}{_more(len(differing) - _SHOWN)}",
        piece.where,
        "Only checkpoints of one architecture can be merged.",
    )


def _shapes(piece: Piece, names: Sequence[str | None]) -> list[tuple[int, ...]]:
    pairs = zip(piece.models, names, strict=True)
    return [model.table[name].shape for model, name in pairs if name is not None]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _more(count: int) -> str:
    return f", and so {count} more" if count > 0 else ""
