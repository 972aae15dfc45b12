"""The text decoder of a model with several parts as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.arrange import MixedPartsError, arrange, arrange_rows
from shardmerge.algebra.pieces import Arrangement, Patch, concatenate
from shardmerge.base.errors import UserError, shortened
from shardmerge.compose.architecture.names import is_embedding, is_head
from shardmerge.compose.architecture.predictors import real_layers, text_section
from shardmerge.compose.architecture.text_part import (
    TextPart,
    has_other_parts,
    text_config,
    text_part,
    text_type,
)
from shardmerge.compose.models import Entry, Model, Place

_T = TypeVar("_T")


def text_model(model: Model) -> Model:
    """Return a model's text decoder as a model; the model itself if it has no other parts.

    Args:
        model: A source, or what is made of some.
    """
    return TextModel(model) if has_other_parts(model.table) else model


class TextModel(Model):
    """The text decoder of a model, under the names and with the config of a text model.

    Where there are more input embeddings than output embeddings, those for pictures at the end
    (Mllama) are left out.

    Args:
        model: That ``has_other_parts``.
    """

    def __init__(self, model: Model) -> None:
        self.name = model.name
        self.part: TextPart = text_part(model.table, model.config)
        self._model = model
        self.table = {new: model.table[own] for new, own in self.part.own.items()}
        heads = [entry.shape[0] for name, entry in self.table.items() if is_head(name)]
        #: Rows of tensors that the whole has more of.
        self.cut: dict[str, int] = {}
        for name, entry in self.table.items():
            if heads and is_embedding(name) and entry.shape[0] > heads[0]:
                self.cut[name] = heads[0]
                self.table[name] = Entry(entry.dtype, (heads[0], *entry.shape[1:]))
        made = text_config(model.config, tied=not heads)
        self._is_known = made is not None
        self.config = made or text_section(model.config)[1]

    def check_known(self) -> None:
        """Check that a model of its config can be made.

        Raises:
            UserError: If no class is known that holds such a decoder alone.
        """
        if not self._is_known:
            raise UserError(
                "it is not known which class of transformers holds a text decoder of the type "
                f"{shortened(text_type(self._model.config))} alone",
                f"config.json of {self.name!r}",
                "Merge it within the whole model, without `other_modules: drop`.",
            )

    @cached_property
    def layer_counts(self) -> Mapping[str, int]:
        return real_layers(self.table, self.config)

    def expression(self, tensor: str) -> ex.Expression:
        own = self._model.expression(self.part.own[tensor])
        if tensor not in self.cut:
            return own
        return _joined(self.name, tensor, arrange, self._rows(tensor), {0: own})

    def row(self, tensor: str) -> fold.Row:
        own = self._model.row(self.part.own[tensor])
        if tensor not in self.cut:
            return own
        return _joined(self.name, tensor, arrange_rows, self._rows(tensor), {0: own})

    def place(self, tensor: str) -> Place:
        return self._model.place(self.part.own[tensor])

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self._model.layer(self.part.stack, self.part.layers[number])

    def number(self, own: int) -> int:
        """Return the number that a layer of the whole has here."""
        return self.part.layers.index(own)

    def _rows(self, tensor: str) -> Arrangement:
        return rows_of(0, self.table[tensor].shape, 0)


class ExtendedModel(Model):
    """A text model whose embeddings are followed by those that a model with more parts has more.

    Args:
        model: The text model, in the layout of the other one.
        like: The other one.
        tensors: The embeddings: their names in the text model to those in the other one.
    """

    def __init__(self, model: Model, like: Model, tensors: Mapping[str, str]) -> None:
        self.name, self.config = model.name, model.config
        self._model, self._like, self._more = model, like, tensors
        self.table = dict(model.table)
        for name, own in tensors.items():
            self.table[name] = Entry(model.table[name].dtype, like.table[own].shape)

    @property
    def layer_counts(self) -> Mapping[str, int]:
        return self._model.layer_counts

    def expression(self, tensor: str) -> ex.Expression:
        own = self._model.expression(tensor)
        if tensor not in self._more:
            return own
        more = self._like.expression(self._more[tensor])
        return _joined(self.name, tensor, arrange, self._made(tensor), {0: own, 1: more})

    def row(self, tensor: str) -> fold.Row:
        own = self._model.row(tensor)
        if tensor not in self._more:
            return own
        more = self._like.row(self._more[tensor])
        return _joined(self.name, tensor, arrange_rows, self._made(tensor), {0: own, 1: more})

    def place(self, tensor: str) -> Place:
        return self._model.place(tensor)

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self._model.layer(stack, number)

    def _made(self, tensor: str) -> Arrangement:
        have, want = self._model.table[tensor].shape, self.table[tensor].shape
        more = (want[0] - have[0], *want[1:])
        return concatenate([rows_of(0, have, 0), rows_of(1, more, have[0])])


def rows_of(operand: int, shape: tuple[int, ...], first: int) -> Arrangement:
    """Return some rows of an operand, from the first of them on."""
    count = len(shape)
    begin = (first, *(0,) * (count - 1))
    piece = Patch(operand, begin, shape, tuple(range(count)), (0,) * count)
    return Arrangement(shape, (piece,))


def _joined(
    name: str,
    tensor: str,
    how: Callable[[Arrangement, Mapping[Any, _T]], _T],
    made: Arrangement,
    parts: Mapping[Any, _T],
) -> _T:
    try:
        return how(made, parts)
    except MixedPartsError:
        raise UserError(
            f"rows of tensor {tensor!r} of {name!r} cannot be taken alone: it is made by a method "
            "that is not a sum",
            None,
            "Build that document as a model of its own first, and start a new recipe from it.",
        ) from None
