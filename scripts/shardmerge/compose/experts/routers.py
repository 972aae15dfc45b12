"""The routers of a mixture: which experts a token goes to, from prompts or at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold, rows
from shardmerge.base.digest import canonical_json
from shardmerge.base.errors import UserError
from shardmerge.compose.architecture.names import is_embedding
from shardmerge.compose.context import Context
from shardmerge.compose.made_sources import MadeSource
from shardmerge.compose.measurements import hidden_states
from shardmerge.compose.models import Model
from shardmerge.recipe.experts import RANDOM
from shardmerge.recipe.stage import Expert, Stage


class Routers:
    """Makes the routers of one mixture.

    Args:
        context: The recipe, and its models.
        stage: The mixture's.
        base: Its base model.
    """

    def __init__(self, context: Context, stage: Stage, base: Model) -> None:
        self._context, self._stage, self._base = context, stage, base
        self._mixture = stage.mixture
        self._embedded: ex.Expression | None = None
        self._hidden: MadeSource | None = None

    def gate(
        self, tensor: str, layer: int, shape: tuple[int, ...], *, shared: bool
    ) -> ex.Expression:
        """Return a layer's router, in float32.

        Args:
            tensor: Its name.
            layer: Number of the layer.
            shape: [experts, width].
            shared: Whether it is that of the shared experts.
        """
        if self._mixture.gate_mode in RANDOM:
            zeros = ex.Cast(ex.Zero(shape), "F32")
            if self._mixture.gate_mode == "random":
                return self.noise("normal_noise", tensor, zeros, 1.0)
            return self.noise("uniform_noise", tensor, zeros, math.sqrt(1.0 / shape[1]))
        if self._mixture.gate_mode == "cheap_embed":
            whole = self._embedding_gate(shape[1])
        else:
            whole = self._hidden_gate(layer, shape[1])
        first = len(self._mixture.experts) if shared else 0
        return ex.take_rows(whole, rows.format_rows(range(first, first + shape[0])))

    def noise(
        self, step: str, tensor: str, operand: ex.Expression, scale: float, model: str = ""
    ) -> ex.Call:
        """Return a tensor with random numbers added.

        Args:
            step: ``normal_noise`` or ``uniform_noise``.
            tensor: Its name.
            operand: What they are added to.
            scale: Their standard deviation or their largest value.
            model: The expert's; none for a router.
        """
        values: dict[str, Any] = {"scale": scale, "seed": self._mixture.seed, "model": model}
        values["stage"] = self._stage.name
        return ex.Call(
            method=step,
            inputs=(operand,),
            base=None,
            parameters=tuple(sorted(values.items())),
            tensor=tensor,
            models=(model,),
            output_shape=operand.shape,
        )

    @property
    def _prompted(self) -> Sequence[Expert]:
        """The experts that have prompts: the routed ones, and shared ones where these have."""
        return [one for one in self._mixture.all if one.positive]

    def _embedding_gate(self, width: int) -> ex.Expression:
        if self._embedded is None:
            ids, lengths = [], []
            known = self._context.lock.sources[self._context.reference_source(self._stage.name)]
            for expert in self._prompted:
                sides = []
                for prompts in (expert.positive, expert.negative):
                    found = [known.prompts[text] for text in prompts]
                    sides.append([len(one) for one in found])
                    ids += [number for one in found for number in one]
                lengths.append(sides)
            self._check(ids, lengths)
            self._embedded = ex.Call(
                method="embedding_gate",
                inputs=(ex.take_rows(self._embedding, rows.format_rows(ids)),),
                base=None,
                parameters=(("prompts", canonical_json(lengths)),),
                models=(self._base.name,),
                output_shape=(len(lengths), width),
            )
        return self._embedded

    @property
    def _embedding(self) -> ex.Expression:
        names = [name for name in self._base.table if is_embedding(name)]
        if len(names) != 1:
            raise UserError(
                f"model {self._base.name!r} has no one embedding that is known by its name",
                self._stage.where,
            )
        if self._context.numerics.folds:
            return fold.to_expression(self._base.row(names[0]), self._base.table[names[0]].shape)
        return self._base.expression(names[0])

    def _check(self, ids: Sequence[int], lengths: Sequence[Sequence[Sequence[int]]]) -> None:
        count = self._embedding.shape[0]
        if high := [number for number in ids if number >= count]:
            raise UserError(
                f"a prompt has token {high[0]}, but {self._base.name!r} has {count} embeddings",
                self._stage.where,
            )
        for expert, sides in zip(self._prompted, lengths, strict=True):
            if any(side and not sum(side) for side in sides):
                raise UserError("the expert's prompts have no tokens", expert.where)

    def _hidden_gate(self, layer: int, width: int) -> ex.Expression:
        if self._hidden is None:
            self._hidden = self._context.note_made(self._hidden_states(width))
        return self._hidden.tensor(f"layers.{layer}")

    def _hidden_states(self, width: int) -> MadeSource:
        reference = self._stage.reference_model
        if reference.model in self._context.recipe.stages or reference.lora:
            raise UserError(
                f"`gate_mode: {self._mixture.gate_mode}` lets the base model read the prompts, "
                f"but {str(reference)!r} is not built yet",
                self._stage.where,
                "Build it as a model of a recipe of its own, and name its folder as the "
                "`base_model`; or write `gate_mode: cheap_embed`.",
            )
        prompts = tuple((one.positive, one.negative) for one in self._prompted)
        (layers,) = self._base.layer_counts.values()
        return hidden_states(
            reference.model, self._context.lock, self._mixture.gate_mode, prompts, layers, width
        )
