"""A stage whose model has another architecture than its base: what all such models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.base.dtypes import DTYPES
from shardmerge.compose.context import Context
from shardmerge.compose.models import Entry, Model, Place
from shardmerge.compose.parts import Assembly, Part
from shardmerge.recipe.parameters import Rule
from shardmerge.recipe.stage import Stage


@dataclass(frozen=True)
class ConfigChange:
    """What config.json says otherwise than the base model's.

    Args:
        values: What is set, by key (``a.b``: b under a).
        removed: Keys that are taken out.
    """

    values: Mapping[str, Any]
    removed: Sequence[str] = ()

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with the change."""
        found = dict(config)
        for key, value in self.values.items():
            section, _, inner = key.rpartition(".")
            if section:
                found[section] = {**found[section], inner: value}
            else:
                found[key] = value
        for key in self.removed:
            section, _, inner = key.rpartition(".")
            if section:
                found[section] = {k: v for k, v in found[section].items() if k != inner}
            else:
                found.pop(key, None)
        return found


class NoSettings:
    """In place of the settings of a stage that has none."""

    unmatched: Sequence[Rule] = ()
    unclear: Mapping[str, Sequence[Rule]] = {}


class DerivedModel(Model):
    """A stage that makes tensors of another architecture from those of its base.

    Args:
        context: The recipe, and the models that the stage reads.
        stage: The stage.
    """

    #: How config.json differs from the base's.
    change: ConfigChange
    settings = NoSettings()
    parts: Mapping[str, Part] = {}

    def __init__(self, context: Context, stage: Stage) -> None:
        self.name = stage.name
        self.stage = stage
        self.context = context
        self.base = context.model(stage.reference_model)
        self.assembly = Assembly()

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return self.change.applied(self.base.config)

    @property
    def layer_counts(self) -> Mapping[str, int]:
        return self.base.layer_counts

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        return self.base.layer(stack, number)

    def expression(self, tensor: str) -> ex.Expression:
        if self.context.numerics.folds:
            return fold.to_expression(self.row(tensor), self.table[tensor].shape)
        return self._stated(tensor)

    def _stated(self, tensor: str) -> ex.Expression:
        """Return a tensor in mergekit numerics, in the type that it is saved in."""
        raise NotImplementedError

    def place(self, tensor: str) -> Place:
        raise NotImplementedError


def cast(operand: ex.Expression, have: str, want: str) -> ex.Expression:
    """Return an expression of one type in another."""
    return operand if have == want else ex.Cast(operand, want)


def typed(entry: Entry, dtype: str | None) -> Entry:
    """Return a tensor's entry in the type that a document wants for floats, if it says one."""
    return Entry(dtype or entry.dtype, entry.shape) if DTYPES[entry.dtype].floating else entry
