"""Tensors of methods that need to know whole models: expressions with what jobs measure of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.weightfolders import folder_of
from shardmerge.compose.architecture.names import is_derived, is_embedding
from shardmerge.compose.context import Context
from shardmerge.compose.made_sources import MadeSource
from shardmerge.compose.measurements import model_measurement
from shardmerge.compose.models import Entry, Model, SourceModel
from shardmerge.compose.parameter_resolution import Resolver
from shardmerge.compose.parts import Part
from shardmerge.methods.method import MergeMethod
from shardmerge.methods.registry import Measure
from shardmerge.recipe.stage import Stage

#: Elements of a row that a coefficient is written into: it is held while a tensor is made.
_ROW = 1 << 20


class MeasuredTensors:
    """Writes the tensors of a stage that are merged with what jobs measure of its models.

    Args:
        context: The recipe, and its models.
        stage: The stage.
        method: Its method, which declares what is measured.
        parts: What the stage's tensors are made from.
        settings: Its parameters.
    """

    def __init__(
        self,
        context: Context,
        stage: Stage,
        method: MergeMethod,
        parts: Mapping[str, Part],
        settings: Resolver,
    ) -> None:
        self._context, self._stage, self._method = context, stage, method
        self._parts, self._settings = parts, settings
        self._measure: Measure = method.measure
        self._known: dict[tuple[Any, ...], MadeSource] = {}
        self._ratio: dict[int, dict[int, MadeSource]] = {}

    def is_measured(self, tensor: str, part: Part) -> bool:
        """Whether there is something to measure of a tensor, and the recipe does not decline."""
        model, name = part.lead
        chosen = self._measure.chosen
        if chosen and not self._settings.values(tensor)[0][chosen]:
            return False
        return self._is_eligible(name, model.table[name])

    def call(
        self, tensor: str, part: Part, operands: Sequence[ex.Expression], shape: tuple[int, ...]
    ) -> ex.Call:
        """Return a tensor as a call of the method's step.

        Args:
            tensor: Its name.
            part: What it is made from.
            operands: The tensors of the stage's inputs.
            shape: Of the result.

        Raises:
            UserError: If a model cannot be measured.
        """
        if self._measure.kind == "norms":
            return self._sum(tensor, part, operands, shape)
        found = [self._of(tensor, part, model).tensor(name) for model, name in part.inputs]
        shared, per_input = self._settings.values(tensor)
        ours = {p.name for p in self._method.parameters if not p.measuring}
        ours -= {self._measure.chosen}
        padded = {k: (*v, *(None for _ in found)) for k, v in per_input.items() if k in ours}
        return ex.Call(
            method=self._measure.step,
            inputs=(*operands, *found),
            base=None,
            parameters=tuple(sorted((k, v) for k, v in shared.items() if k in ours)),
            per_input=tuple(sorted(padded.items())),
            tensor=tensor,
            models=(*(model.name for model, _ in part.inputs), *(one.model for one in found)),
            output_shape=shape,
        )

    def _sum(
        self, tensor: str, part: Part, operands: Sequence[ex.Expression], shape: tuple[int, ...]
    ) -> ex.Call:
        """Return the base plus task vectors times coefficients, each a row that is repeated."""
        measured = self._norms(part)
        norms = tuple(one.tensor("norm") for one in measured.values())
        count = ex.elements(operands[0])
        width = _width(count)
        names = tuple(one.title for one in measured.values())
        used = [list(measured).index(i) for i in part.used if i in measured]
        factor = self._settings.values(tensor)[0]["lambda"]
        factors = []
        for number in used:
            values = {"model": number, "width": width, "lambda": factor}
            share = ex.Call(
                method="metagpt_share",
                inputs=norms,
                base=None,
                parameters=tuple(sorted(values.items())),
                models=names,
                output_shape=(1, width),
            )
            factors.append(ex.Rows(share, rows.format_rows([0] * (count // width))))
        return ex.Call(
            method=self._measure.step,
            inputs=(*operands, *factors),
            base=part.base,
            tensor=tensor,
            models=(*(model.name for model, _ in part.inputs), *(names[number] for number in used)),
            output_shape=shape,
        )

    def _norms(self, part: Part) -> Mapping[int, MadeSource]:
        """Return the measured norm of each model's difference from the base, by its number.

        A model that lacks the tensor counts too, as the norms are those of whole models.
        """
        for model, _ in part.inputs:
            self._source(model, part)  # tells of those that follow other tokens
        piece = part.piece
        if piece.number not in self._ratio:
            base = self._source(piece.models[piece.base], part)
            self._ratio[piece.number] = {
                i: self._norm(self._source(model, part), base)
                for i, model in enumerate(piece.models)
                if i != piece.base
            }
        return self._ratio[piece.number]

    def _norm(self, model: SourceModel, base: SourceModel) -> MadeSource:
        pairs = sorted(
            (names[model.name], names[base.name])
            for part in self._parts.values()
            for names in [{one.name: name for one, name in part.inputs}]
            if model.name in names and base.name in names
            if DTYPES[model.table[names[model.name]].dtype].floating
            and not folder_of(names[model.name])
        )
        alike = all(one == two for one, two in pairs)
        tensors = [one for one, _ in pairs] if alike else pairs
        return self._context.note_made(
            model_measurement(
                "norms",
                (model.name, base.name),
                self._context.lock,
                {"tensors": tensors},
                {"norm": ("F32", (1,))},
            )
        )

    def _of(self, tensor: str, part: Part, model: Model) -> MadeSource:
        """Return what is measured of a model while it reads its text."""
        index = [one for one, _ in part.inputs].index(model)
        per_input = self._settings.values(tensor)[1]
        told = {p.name: per_input[p.name][index] for p in self._method.parameters if p.measuring}
        key = (model.name, *told.items())
        if key not in self._known:
            source, text = self._source(model, part), told.pop("text")
            self._check_text(text, told["context"], part)
            tensors = self._tensors(source)
            self._known[key] = self._context.note_made(
                model_measurement(
                    self._measure.kind,
                    (source.name,),
                    self._context.lock,
                    {**told, "tensors": tensors},
                    {name: ("F32", self._sum_shape(shape)) for name, shape in tensors},
                    text,
                )
            )
        return self._known[key]

    def _tensors(self, model: SourceModel) -> list[list[Any]]:
        """Return names and shapes of all tensors of a model that are measured.

        They do not depend on what else the stage takes of it, so that recipes share the result.
        """
        return [
            [name, list(entry.shape)]
            for name, entry in sorted(model.table.items())
            if self._is_eligible(name, entry) and name not in self._declined.get(model.name, ())
        ]

    @cached_property
    def _declined(self) -> Mapping[str, set[str]]:
        """Tensors of each model that the recipe leaves out wherever they go."""
        found: dict[str, set[str]] = {}
        used: dict[str, set[str]] = {}
        for tensor, part in self._parts.items():
            if not part.copied:
                chosen = self._settings.values(tensor)[0][self._measure.chosen]
                for model, name in part.inputs:
                    (used if chosen else found).setdefault(model.name, set()).add(name)
        return {model: names - used.get(model, set()) for model, names in found.items()}

    def _is_eligible(self, name: str, entry: Entry) -> bool:
        if not DTYPES[entry.dtype].floating or not all(entry.shape):
            return False
        match self._measure.kind:
            case "norms":
                return True
            case "fisher":
                return not (folder_of(name) or is_derived(name))
        matrix = len(entry.shape) == 2 and name.endswith(".weight")
        return matrix and not (folder_of(name) or is_embedding(name))

    def _source(self, model: Model, part: Part) -> SourceModel:
        """Return a model that a job can read: one that is there before anything is merged."""
        where, lock = part.piece.where, self._context.lock
        if not isinstance(model, SourceModel) or model.name not in lock.sources:
            raise UserError(
                f"`merge_method: {self._method.name}` measures each model before anything is "
                f"merged, but {model.name!r} is not built yet, or gets an adapter or other tokens",
                where,
                "Build it as a model of a recipe of its own, and name its folder.",
            )
        if model.decoded:
            raise UserError(
                f"`merge_method: {self._method.name}` cannot measure {model.name!r}, whose weights "
                "are quantised",
                where,
                "Build it first: merge it alone by `linear`, and name the folder of the result.",
            )
        return model

    def _check_text(self, text: str, context: int, part: Part) -> None:
        size = self._context.lock.texts[text].size
        if size < context:
            raise UserError(
                f"the text {text!r} has {size} bytes, too few for one block of {context} tokens",
                part.piece.where,
                "Name a longer text, or write a smaller `context`.",
            )

    def _sum_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what is added up for a tensor."""
        return (shape[1], shape[1]) if self._measure.kind == "grams" else tuple(shape)


def _width(count: int) -> int:
    """Return the largest length of equal rows of so many elements that is not too large to hold."""
    least = -(-count // _ROW)
    rows_of = next((n for n in range(max(least, 1), 4 * least + 1) if count % n == 0), 1)
    return count // rows_of
