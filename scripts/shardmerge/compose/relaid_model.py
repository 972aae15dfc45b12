"""A model in the layout of another: the same weights under other names, in other shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.arrange import MixedPartsError, arrange, arrange_rows
from shardmerge.algebra.pieces import Arrangement
from shardmerge.base.dtypes import promoted
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.names import layer_of
from shardmerge.compose.models import Entry, Model, Place


class RelaidModel(Model):
    """A model some of whose tensors are arranged as another model has them.

    Args:
        model: As it is.
        parts: The tensors that are arranged, by their new names: what each is of the model's own.
    """

    def __init__(self, model: Model, parts: Mapping[str, Arrangement]) -> None:
        self.name, self.config = model.name, model.config
        self._model, self._parts = model, parts
        self.table = dict(self._entries())

    @cached_property
    def layer_counts(self) -> Mapping[str, int]:
        known = self._model.layer_counts
        found = {new: known[own] for new, own in self._stacks.items() if own in known}
        return {**known, **found}

    def expression(self, tensor: str) -> ex.Expression:
        if tensor not in self._parts:
            return self._model.expression(tensor)
        made = self._parts[tensor]
        try:
            return arrange(made, {name: self._model.expression(name) for name in made.operands()})
        except MixedPartsError:
            raise self._mixed(tensor) from None

    def row(self, tensor: str) -> fold.Row:
        if tensor not in self._parts:
            return self._model.row(tensor)
        made = self._parts[tensor]
        try:
            return arrange_rows(made, {name: self._model.row(name) for name in made.operands()})
        except MixedPartsError:
            raise self._mixed(tensor) from None

    def place(self, tensor: str) -> Place:
        return self._model.place(self._lead(tensor))

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self._model.layer(self._stacks.get(stack, stack), number)

    @cached_property
    def _stacks(self) -> dict[str, str]:
        """The stacks of layers under their new names: what each is called in the model."""
        found = {}
        for name in self._parts:
            new, own = layer_of(name), layer_of(self._lead(name))
            if new and own:
                found[new[0]] = own[0]
        return found

    def _entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield all tensors in the model's order, arranged ones where their first part stands."""
        starts: dict[str, list[str]] = {}
        used = set()
        for name, made in self._parts.items():
            operands = made.operands()
            starts.setdefault(operands[0], []).append(name)
            used.update(operands)
        for own, entry in self._model.table.items():
            for name in starts.get(own, ()):
                made = self._parts[name]
                dtype = promoted(self._model.table[one].dtype for one in made.operands())
                yield name, Entry(dtype, made.shape)
            if own not in used:
                yield own, entry

    def _lead(self, tensor: str) -> str:
        made = self._parts.get(tensor)
        return made.pieces[0].operand if made else tensor

    def _mixed(self, tensor: str) -> UserError:
        names = self._parts[tensor].operands()
        shown = f"{names[0]!r}" + (f" to {names[-1]!r}" if len(names) > 1 else "")
        return UserError(
            f"tensor {tensor!r} cannot be made of {shown} of {self.name!r}: its parts are not all "
            "merged or adapted in one way",
            None,
            "Build that model first, as a recipe of its own, or merge models that all store these "
            "weights alike.",
        )
