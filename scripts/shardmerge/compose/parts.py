"""What a stage's model is put together from: slices with their models, tensors with theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from shardmerge.base.once import once
from shardmerge.compose.models import Model
from shardmerge.recipe.parameters import Setting
from shardmerge.recipe.stage import Input


@dataclass(frozen=True)
class Piece:
    """A slice of a stage with its models.

    Args:
        number: In the order of the output.
        inputs, models: Of the slice, in the recipe's order.
        base: Index of the base model among them, or None.
        levels: Settings of the slice, its module and the stage.
        where: File and line.
    """

    number: int
    inputs: tuple[Input, ...]
    models: tuple[Model, ...]
    base: int | None
    levels: tuple[Mapping[str, Setting], ...]
    where: str

    @once
    def lead(self) -> int:
        """Index of the input whose layout the output follows."""
        return self.base or 0


@dataclass(eq=False)  # not frozen, which takes twice the time: a plan makes a hundred thousand
class Part:
    """An output tensor: what it is made from.

    Args:
        piece: The slice that it belongs to.
        names: The tensor of each input, None where an input has none.
        labels: What each input's filters look at: its tensor's name, as the output would have it.
        t: Layer fraction within the slice.
        copied: Whether it is the only input's that has the tensor as it is, whatever the method.
    """

    piece: Piece
    names: tuple[str | None, ...]
    labels: tuple[str, ...]
    t: float
    copied: bool = False

    @once
    def used(self) -> tuple[int, ...]:
        """Indices of the inputs that have the tensor."""
        if None not in self.names:
            return _all(len(self.names))
        return tuple(i for i, name in enumerate(self.names) if name is not None)

    @once
    def base(self) -> int | None:
        """Index of the base model among the inputs that have the tensor."""
        return self.used.index(self.piece.base) if self.piece.base in self.used else None

    @once
    def inputs(self) -> list[tuple[Model, str]]:
        """The models that have the tensor, each with its name there."""
        if None not in self.names:
            return list(zip(self.piece.models, self.names, strict=True))
        return [(self.piece.models[i], self.names[i]) for i in self.used]

    @once
    def lead(self) -> tuple[Model, str]:
        """The model that the tensor's place and shape come from, and its tensor there."""
        i = self.piece.lead
        if self.names[i] is None:
            i = self.used[0]
        return self.piece.models[i], self.names[i]


@cache
def _all(count: int) -> tuple[int, ...]:
    return tuple(range(count))


@dataclass(frozen=True)
class Predictors:
    """What became of layers for multi-token prediction.

    Args:
        lead: The model that the output follows: its layers are kept, or it has none.
        having: All models that have them.
        kept: Whether its layers are in the output.
        shared: Whether all have them, so that they are merged.
    """

    lead: str
    having: tuple[str, ...]
    kept: bool
    shared: bool


@dataclass(frozen=True)
class FolderMerge:
    """What became of a folder with weights of its own.

    Args:
        folder: Its name.
        lead: The model that the output follows.
        having: All models that have it.
        kept: Whether it is in the output.
        shared: Whether all have the same tensors in it, so that they are merged.
    """

    folder: str
    lead: str
    having: tuple[str, ...]
    kept: bool
    shared: bool


@dataclass(frozen=True)
class TextMerge:
    """A text model that is merged with the text decoder of a model with other parts.

    Args:
        text, whole: The models.
        into: Whether the output has the other parts too.
    """

    text: str
    whole: str
    into: bool


@dataclass
class Assembly:
    """The tensors of a stage's model.

    Args:
        parts: By name, in order.
        layers: For every stack of layers that slices make: the model, stack and number that each
            layer of the output has its place from.
        untied: Whether an input embedding stands for an output embedding that a tied model lacks.
        predictors: What became of layers for multi-token prediction, unless whole models that all
            have them are merged.
        folders: What became of folders with weights of their own.
        texts: Which text models are merged with decoders of others.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    layers: dict[str, list[tuple[Model, str, int]]] = field(default_factory=dict)
    untied: bool = False
    predictors: list[Predictors] = field(default_factory=list)
    folders: list[FolderMerge] = field(default_factory=list)
    texts: list[TextMerge] = field(default_factory=list)
