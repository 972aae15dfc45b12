"""A model with a LoRA adapter: what the adapter adds is a term of every sum that it changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.base.numerics import Numerics
from shardmerge.compose.adapters import Update, adapter_updates
from shardmerge.compose.models import Model, Place
from shardmerge.sources.lock import LockedSource


class LoraModel(Model):
    """A source or a stage with an adapter applied; it is merged in passing and written nowhere.

    Args:
        name: The reference as the recipe writes it.
        base: The model that is adapted.
        key: The adapter's key in the lock.
        adapter: Its lock.
        numerics: In which the sum is composed.
    """

    def __init__(
        self, name: str, base: Model, key: str, adapter: LockedSource, numerics: Numerics
    ) -> None:
        self.name = name
        self.table, self.config = base.table, base.config
        self._base, self._key, self._adapter, self._numerics = base, key, adapter, numerics

    @cached_property
    def _updates(self) -> dict[str, Update]:
        return adapter_updates(self._key, self._adapter, self.table, self._base.name)

    @property
    def layer_counts(self) -> Mapping[str, int]:
        return self._base.layer_counts

    def row(self, tensor: str) -> fold.Row:
        update = self._updates.get(tensor)
        if update is None:
            return self._base.row(tensor)
        row = fold.leaf(update.replacement) if update.replacement else self._base.row(tensor)
        wide = self.table[tensor].dtype == "F64" or any(
            s.dtype == "F64" for part in row for s in ex.sources(part)
        )
        parts = [(1.0, row)]
        if update.bias:
            parts.append((update.scale, fold.leaf(update.bias)))
        if update.b:
            parts.append((1.0, fold.leaf(_product(update, wide))))
        row = fold.add_rows(parts)
        if update.magnitude is None:
            return row
        return fold.leaf(self._dora(tensor, self._single(tensor, row), update))

    def expression(self, tensor: str) -> ex.Expression:
        update = self._updates.get(tensor)
        if update is None:
            return self._base.expression(tensor)
        if not self._numerics.folds:
            return self._mergekit_expression(tensor, update)
        return self._single(tensor, self.row(tensor))

    def place(self, tensor: str) -> Place:
        return self._base.place(tensor)

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self._base.layer(stack, number)

    def _single(self, tensor: str, row: fold.Row) -> ex.Expression:
        return fold.to_expression(row, self.table[tensor].shape)

    def _dora(self, tensor: str, adapted: ex.Expression, update: Update) -> ex.Call:
        return ex.Call(
            method="dora",
            inputs=(adapted, update.magnitude),
            base=None,
            parameters=(("transposed", update.transposed),),
            models=(self._base.name, self._key),
            output_shape=self.table[tensor].shape,
        )

    def _mergekit_expression(self, tensor: str, update: Update) -> ex.Expression:
        """Return what peft's ``merge_and_unload`` makes: mergekit saves its result, and reads that.

        The update is computed in float32 (in float64 where the model is), and rounded to the
        model's type when it is added; an embedding's is rounded before that as well.
        """
        dtype = self.table[tensor].dtype
        own = self._base.expression(tensor)
        if update.replacement:
            own = update.replacement
            own = own if own.dtype == dtype else ex.Cast(own, dtype)
        terms: list[tuple[float, ex.Expression]] = [(1.0, own)]
        if update.bias:
            terms.append((update.scale, update.bias))
        if update.b:
            product: ex.Expression = _product(update, dtype == "F64")
            terms.append((1.0, ex.Cast(product, dtype) if update.embedding else product))
        if len(terms) == 1:
            return own
        merged: ex.Expression = ex.Linear(tuple(terms))
        if update.magnitude is not None:
            merged = self._dora(tensor, merged, update)
        return ex.Cast(merged, dtype)


def _product(update: Update, wide: bool) -> ex.LowRank:
    wide = wide or "F64" in (update.b.dtype, update.a.dtype)
    how = update.transposed, "F64" if wide else "F32", update.experts
    return ex.LowRank(update.b, update.a, update.scale, *how)
