"""Models whose embeddings follow the tokenizer of the stage that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.base.dtypes import DTYPES, promoted
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.names import is_vocabulary
from shardmerge.compose.models import Entry, Model, Place
from shardmerge.compose.tokenizer.align import Alignment


def vocabulary_rows(model: Model, where: str | None = None) -> int:
    """Return for how many tokens a model has embeddings.

    Raises:
        UserError: If it is not clear from its tensors.
    """
    found = {t: e.shape[0] for t, e in model.table.items() if is_vocabulary(t) and e.shape}
    if not found:
        raise UserError(f"model {model.name!r} has no embeddings that are known by name", where)
    if len(set(found.values())) > 1:
        sizes = ", ".join(f"{tensor!r} {count}" for tensor, count in found.items())
        raise UserError(f"the embeddings of {model.name!r} have different rows: {sizes}", where)
    return next(iter(found.values()))


class AlignedModel(Model):
    """An input of a stage as one tensor of it: with a row for each of the stage's tokens.

    Args:
        index: Of the input.
        models: All inputs that have the tensor.
        tensors: Its name in each.
        alignment: How rows follow tokens.
        stated: Code of the dtype that inputs are cast to first, ``""`` for the widest of theirs;
            None where nothing is rounded on the way.
    """

    def __init__(
        self,
        index: int,
        models: Sequence[Model],
        tensors: Sequence[str],
        alignment: Alignment,
        stated: str | None,
    ) -> None:
        self.name = models[index].name
        self._index, self._models, self._tensors = index, models, tensors
        self._alignment, self._stated = alignment, stated
        self._own, self.config = models[index], models[index].config

    @cached_property
    def table(self) -> Mapping[str, Entry]:
        tensor = self._tensors[self._index]
        entry = self._own.table[tensor]
        if not DTYPES[entry.dtype].floating:
            raise UserError(
                f"tensor {tensor!r} of {self.name!r} is {DTYPES[entry.dtype].name}: its rows "
                "cannot follow another tokenizer"
            )
        dtype = entry.dtype if self._stated is None else self._dtype
        return {tensor: Entry(dtype, (self._alignment.rows, *entry.shape[1:]))}

    def expression(self, tensor: str) -> ex.Expression:
        if self._stated is None:
            return fold.to_expression(self.row(tensor), self.table[tensor].shape)

        def cast(index: int) -> ex.Expression:
            model, name = self._models[index], self._tensors[index]
            operand = model.expression(name)
            return (
                operand if model.table[name].dtype == self._dtype else ex.Cast(operand, self._dtype)
            )

        return self._alignment.expression(self._index, cast)

    def row(self, tensor: str) -> fold.Row:
        if self._alignment.is_own(self._index):
            table = self._alignment.rows_of(self._index)
            row = self._own.row(tensor)
            return {ex.take_rows(leaf, table): weight for leaf, weight in row.items()}
        return fold.leaf(self._alignment.expression(self._index, self._sum))

    def place(self, tensor: str) -> Place:
        return self._own.place(tensor)

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self._own.layer(stack, number)

    def _sum(self, index: int) -> ex.Expression:
        model, name = self._models[index], self._tensors[index]
        return fold.to_expression(model.row(name), model.table[name].shape)

    @property
    def _dtype(self) -> str:
        pairs = zip(self._models, self._tensors, strict=True)
        return self._stated or promoted(model.table[name].dtype for model, name in pairs)
