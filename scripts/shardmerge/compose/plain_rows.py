"""Rows of tokens that a model lacks, made of its tensor alone: its mean, zeros, random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.leaves import stated_dtype
from shardmerge.algebra.transplant import BY_CHANCE, TransplantSpec
from shardmerge.compose.context import Context
from shardmerge.compose.made_sources import MadeSource
from shardmerge.compose.transplants import made_rows, transplant
from shardmerge.recipe.stage import Approximation

#: Rows that one is made of, where a recipe does not say.
DEFAULT_K = 64
#: Makes one row for each of some tokens from a model's tensor.
Making = Callable[[ex.Expression], ex.Expression]
#: What says beside the seed which random numbers are meant: document, kind of tensor, model.
RowStream = tuple[str, str, str]


class PlainRows:
    """Makes rows as a recipe says, without a donor's embeddings and without the tokens' texts.

    Args:
        context: The recipe, and its models.
        settings: What the recipe says.
    """

    def __init__(self, context: Context, settings: Approximation) -> None:
        self._context, self._settings = context, settings

    def making(self, count: int, limit: int, stream: RowStream) -> Making | None:
        """Return what makes rows of a tensor; None if they are zeros and stay so.

        Args:
            count: How many rows.
            limit: Rows of the tensor.
            stream: Of the random numbers.
        """
        method = self._settings.method
        if method in BY_CHANCE:
            return partial(self._around_mean, self._drawn(count, limit, stream))
        if method == "mean":
            return partial(self._means, count)
        return partial(self._zeros, count) if self._deviation else None

    def with_noise(self, placed: ex.Expression, stream: RowStream) -> ex.Expression:
        """Return made rows, each at its token's id, with noise where it is asked for.

        A row's noise follows from its id, whatever other tokens are made.
        """
        if not self._deviation:
            return placed
        stage, kind, model = stream
        values: dict[str, Any] = {"scale": self._deviation, "seed": self._settings.seed}
        values |= {"stage": stage, "model": model}
        return ex.Call(
            method="normal_noise",
            inputs=(placed,),
            base=None,
            parameters=tuple(sorted(values.items())),
            tensor=kind,
            models=(model,),
            output_shape=placed.shape,
        )

    def typed(self, make: Making) -> Making:
        """Return what makes the same rows, in the tensor's type where types are stated."""

        def made(operand: ex.Expression) -> ex.Expression:
            found = make(operand)
            return self._typed(found, operand) if isinstance(found, ex.Source) else found

        return made

    @property
    def _deviation(self) -> float:
        """The standard deviation of what is added to made rows."""
        own = 1.0 if self._settings.method == "randn" else 0.0
        return math.hypot(own, self._settings.noise) * self._settings.scale

    def _zeros(self, count: int, operand: ex.Expression) -> ex.Expression:
        return self._typed(ex.Zero((count, *operand.shape[1:])), operand)

    def _means(self, count: int, operand: ex.Expression) -> ex.Expression:
        found = ex.take_rows(ex.Mean(operand), rows.format_rows([0] * count))
        scale = self._settings.scale
        return found if scale == 1 else self._typed(ex.Linear(((scale, found),)), operand)

    def _around_mean(self, drawn: MadeSource, operand: ex.Expression) -> ex.Expression:
        """Return drawn rows, which come on top of the mean."""
        means = ex.take_rows(ex.Mean(operand), rows.format_rows([0] * drawn.spec.count))
        terms = ((self._settings.scale, means), (1.0, made_rows(drawn, operand)))
        return self._typed(ex.Linear(terms), operand)

    def _typed(self, made: ex.Expression, like: ex.Expression) -> ex.Expression:
        """Return what is made in the type that numerics of stated types have its operand in."""
        if self._context.numerics.rounds_once:
            return ex.Cast(made, "F32") if isinstance(made, ex.Zero) else made
        return ex.Cast(made, stated_dtype(like))

    def _drawn(self, count: int, limit: int, stream: RowStream) -> MadeSource:
        spec = TransplantSpec(
            method=self._settings.method,
            count=count,
            most=max(self._settings.k or DEFAULT_K, 2),
            limit=limit,
            scale=self._settings.scale,
            seed=self._settings.seed,
            stream=stream,
        )
        return self._context.note_made(transplant(spec, (), stream[-1]))
