"""A stage as a model: what its method makes of its inputs, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.rows import format_runs
from shardmerge.base.dtypes import MERGEABLE_CODES, promoted
from shardmerge.base.errors import UserError
from shardmerge.compose import norms
from shardmerge.compose.architecture.fused import FusedPart, FusedTensors
from shardmerge.compose.architecture.names import layer_counts
from shardmerge.compose.architecture.norms import is_scale, offset
from shardmerge.compose.assembly import Align, assemble
from shardmerge.compose.context import Context
from shardmerge.compose.differences import side_by_side
from shardmerge.compose.measured_tensors import MeasuredTensors
from shardmerge.compose.models import Entry, FilePlaces, Model, Place
from shardmerge.compose.parameter_resolution import Resolver
from shardmerge.compose.parts import Assembly, Part
from shardmerge.compose.repeated_sums import RepeatedSums, coefficients_of
from shardmerge.compose.tensor_matching import check_buffers
from shardmerge.compose.text_model import TextModel, text_model
from shardmerge.methods import registry
from shardmerge.recipe.slices import check_inputs
from shardmerge.recipe.stage import Stage

#: Steps of one tensor; recipes of many documents have some tens.
MAX_STEPS = 2000


class StageModel(Model):
    """A stage of the recipe.

    Args:
        context: The recipe, and the models that the stage reads.
        stage: The stage.
        align: Brings the models of a piece to the stage's tokens.
    """

    def __init__(self, context: Context, stage: Stage, align: Align) -> None:
        self.name = stage.name
        self.stage = stage
        self.method = registry.method(stage.method, stage.where)
        self.context = context
        self._align = align
        self.assembly = self._assemble()
        self.parts = self.assembly.parts
        self._reference = context.model(stage.reference_model)
        if stage.drops:
            self._reference = text_model(self._reference)
            if isinstance(self._reference, TextModel):
                self._reference.check_known()
        self.config = self._reference.config
        splits = self.method.linear is not None and self.method.measure is None
        folds = context.numerics.folds
        fused = self._fused()
        self.settings = Resolver(stage, self.method, self.parts, fused, splits and folds)
        self._measured: MeasuredTensors | None = None
        if self.method.measure:
            self._measured = MeasuredTensors(context, stage, self.method, self.parts, self.settings)
        self._forms: dict[int, tuple[registry.Request, registry.LinearForm]] = {}
        self._rows: dict[str, fold.Row] = {}
        self._sums = RepeatedSums()
        self._plain_forms: dict[tuple[int, float], str] = {}
        self._expressions: dict[str, ex.Expression] = {}
        self._files: dict[FilePlaces, FilePlaces] = {}  # one object for all tensors of a file
        self._entries: dict[tuple[Entry, bool], Entry] = {}
        for tensor, part in list(self.parts.items()):
            if None in part.names:
                self._check_used(tensor, part)

    def _assemble(self) -> Assembly:
        return assemble(self.stage, self.context.model, self._align)

    def _fused(self) -> FusedTensors:
        return FusedTensors(self.config)

    @cached_property
    def table(self) -> Mapping[str, Entry]:
        return {name: self._entry(part) for name, part in self.parts.items()}

    @cached_property
    def layer_counts(self) -> Mapping[str, int]:
        known = self._reference.layer_counts
        found = {stack: known.get(stack, n) for stack, n in layer_counts(self.table).items()}
        return found | {stack: len(layers) for stack, layers in self.assembly.layers.items()}

    def expression(self, tensor: str) -> ex.Expression:
        found = self._expressions.get(tensor)
        if found is None:
            part = self.parts[tensor]
            try:
                found = self._like_another(tensor, part) or self._expression(tensor, part)
            except OverflowError:
                raise self._too_large(tensor) from None
            if found.size > MAX_STEPS:
                raise self._too_long(tensor)
            self._expressions[tensor] = found
        return found

    def row(self, tensor: str) -> fold.Row:
        if tensor not in self._rows:
            try:
                row = self._row(tensor, self.parts[tensor])
            except OverflowError:
                raise self._too_large(tensor) from None
            if sum([leaf.size for leaf in row]) > MAX_STEPS:
                raise self._too_long(tensor)
            self._rows[tensor] = row
        return self._rows[tensor]

    def _expression(self, tensor: str, part: Part) -> ex.Expression:
        if self.context.numerics.folds:
            return self._folded(tensor, part)
        if self._mergeable(part):
            return self._mergekit_expression(tensor, part)
        model, name = part.lead
        return model.expression(name)

    def _folded(self, tensor: str, part: Part) -> ex.Expression:
        found = fold.to_expression(self.row(tensor), self.table[tensor].shape)
        if known := self._repeated(tensor, part):
            self._sums.note(*known, found)
        return found

    def _like_another(self, tensor: str, part: Part) -> ex.Expression | None:
        """Return a sum that differs from one that is known in names alone, None if none does."""
        known = self._repeated(tensor, part)
        return self._sums.like(*known) if known else None

    def _repeated(self, tensor: str, part: Part) -> tuple[Any, tuple[ex.Expression, ...]] | None:
        """Return what decides a sum of tensors of files but their names, and these tensors.

        Returns:
            None for all else.
        """
        if not self._repeats or part.copied or None in part.names:
            return None
        # without rules for some tensors alone, this is all that a request depends on
        alike = part.piece.number, part.t
        form = self._plain_forms.get(alike)
        if form is None:
            if not self._floats(part):
                return None
            form = self._plain_forms[alike] = coefficients_of(self._linear_form(tensor))
        if not form:
            return None
        found = [m.with_kind(n) for m, n in zip(part.piece.models, part.names, strict=True)]
        inputs, kinds = zip(*found, strict=True)
        return (form, kinds), inputs

    @cached_property
    def _repeats(self) -> bool:
        """Whether coefficients and inputs are all that decides a sum, whatever the tensor."""
        plain = self.method.linear is not None and self._measured is None
        plain = plain and self.context.numerics.folds
        return plain and not self.settings.ruled and self.name not in self.context.geometric

    def _too_large(self, tensor: str) -> UserError:
        """Tell of coefficients that no float32 can hold where they arise."""
        return UserError(
            f"the coefficients of tensor {tensor!r} are too large for float32",
            self.parts[tensor].piece.where,
            "Write smaller weights, or weights whose sum is further from 0.",
        )

    def _too_long(self, tensor: str) -> UserError:
        """Tell of what takes more steps than can be planned: each document may double them."""
        return UserError(
            f"tensor {tensor!r} of {self.name!r} takes more than {MAX_STEPS} steps over the "
            "documents that it is made from",
            self.parts[tensor].piece.where,
            "Build a document of the middle as a model of its own, and start a new recipe from it.",
        )

    def place(self, tensor: str) -> Place:
        part = self.parts[tensor]
        model, name = part.lead
        files, begin = model.place(name)
        key = (part.piece.number, ""), *files
        return self._files.setdefault(key, key), begin

    def layer(self, stack: str, number: int) -> tuple[str, str, int]:
        if stack not in self.assembly.layers:
            return self._reference.layer(stack, number)
        model, own, index = self.assembly.layers[stack][number]
        return model.layer(own, index)

    def _row(self, tensor: str, part: Part) -> fold.Row:
        if not self._mergeable(part):
            model, name = part.lead
            return model.row(name)
        rows = [model.row(name) for model, name in part.inputs]
        if self._copies(part):
            return rows[0]
        if self.method.linear is None:
            shape = self.table[tensor].shape
            operands = tuple(fold.to_expression(row, shape) for row in rows)
            return fold.leaf(self._call(tensor, part, operands))
        if self._measured and self._measured.is_measured(tensor, part):
            self._linear_form(tensor)  # tells of weights that do not go together
            shape = self.table[tensor].shape
            operands = tuple(fold.to_expression(row, shape) for row in rows)
            return fold.leaf(self._measured.call(tensor, part, operands, shape))
        if groups := self.settings.apart(tensor):
            return fold.leaf(self._apart(tensor, part, rows, groups))
        form = self._linear_form(tensor)
        if self.name in self.context.geometric and is_scale(tensor):
            return self._ratio_row(tensor, part, form, rows)
        return self._sum(part, form, rows)

    def _sum(self, part: Part, form: registry.LinearForm, rows: list[fold.Row]) -> fold.Row:
        delta_dtype = self.context.delta_dtype or self.stage.dtype
        return fold.apply_form(form, rows, part.base, delta_dtype or _promoted(part))

    def _apart(
        self,
        tensor: str,
        part: Part,
        rows: list[fold.Row],
        groups: Mapping[int, tuple[registry.Request, list[FusedPart]]],
    ) -> ex.Choice:
        """Return a tensor that projections share which are not all merged alike: row by row."""
        shape, runs, sums = self.table[tensor].shape, [], []
        for number, (request, found) in groups.items():
            form = self._linear_form(tensor, request)
            sums.append(fold.to_expression(self._sum(part, form, rows), shape))
            runs += [(one.first, number, one.count) for one in found]
        table = format_runs((number, count) for _, number, count in sorted(runs))
        return ex.Choice(tuple(sums), table)

    def _ratio_row(
        self, tensor: str, part: Part, form: registry.LinearForm, rows: list[fold.Row]
    ) -> fold.Row:
        return norms.ratio_row(
            form,
            part.base,
            rows,
            [model.name for model, _ in part.inputs],
            tensor,
            self.table[tensor].shape,
            offset(self.config, tensor),
        )

    def _linear_form(
        self, tensor: str, request: registry.Request | None = None
    ) -> registry.LinearForm:
        request = request or self.settings.request(tensor)
        if id(request) in self._forms:
            return self._forms[id(request)][1]
        try:
            form = self.method.linear(request)
        except UserError as error:
            raise UserError(
                f"{error.message} (tensor {tensor!r})", self.parts[tensor].piece.where, error.hint
            ) from None
        self._forms[id(request)] = request, form  # kept together, so that no other has its id
        return form

    def _call(self, tensor: str, part: Part, inputs: tuple[ex.Expression, ...]) -> ex.Call:
        request = self.settings.request(tensor)
        shared = request.parameters
        if not self.method.deterministic:
            # Two stages of one random method must not draw the same numbers.
            shared = shared | {"stage": self.stage.name}
        return ex.Call(
            method=self.method.name,
            inputs=inputs,
            base=request.base,
            parameters=tuple(sorted(shared.items())),
            per_input=tuple(sorted(request.per_input.items())),
            tensor=tensor,
            models=request.models,
            output_shape=self.table[tensor].shape,
        )

    def _mergekit_expression(self, tensor: str, part: Part) -> ex.Expression:
        dtype = self.stage.dtype or _promoted(part)
        inputs = tuple(
            _cast(model.expression(name), model.table[name].dtype, dtype)
            for model, name in part.inputs
        )
        if self._copies(part):
            return _cast(inputs[0], dtype, self.table[tensor].dtype)
        call, numerics = self._call(tensor, part, inputs), self.context.numerics
        if self.method.is_sum:
            self._linear_form(tensor)  # tells of weights that do not go together
        if self.method.rendering(numerics).skips_zeros:
            weights = dict(call.per_input)["weight"]
            keep = [i for i, w in enumerate(weights) if w != 0] or [0]
            call = _select(call, keep)
        made = registry.result_dtype(self.method.name, numerics, dtype)
        return _cast(call, made, self.table[tensor].dtype)

    def _entry(self, part: Part) -> Entry:
        """Return type and shape of a tensor: one object for all that are alike."""
        model, name = part.lead
        entry = model.table[name]
        if not self.stage.dtype or None in part.names:
            return self._made(part, entry)
        key = entry, part.copied
        found = self._entries.get(key)
        if found is None:
            found = self._entries[key] = self._made(part, entry)
        return found

    def _made(self, part: Part, entry: Entry) -> Entry:
        if entry.dtype not in MERGEABLE_CODES:
            return entry
        dtype = self.stage.dtype or _promoted(part)
        if not self._copies(part):
            dtype = registry.result_dtype(self.method.name, self.context.numerics, dtype)
        return Entry(self.stage.out_dtype or dtype, entry.shape)

    def _mergeable(self, part: Part) -> bool:
        """Whether a tensor is merged; otherwise the lead's is copied.

        Raises:
            UserError: If it could be part of a quantised weight, and is not one for all inputs.
        """
        if self._floats(part):
            return True
        if len({model.expression(name) for model, name in part.inputs}) > 1:
            check_buffers(part)
        return False

    @staticmethod
    def _floats(part: Part) -> bool:
        return all(model.table[name].dtype in MERGEABLE_CODES for model, name in part.inputs)

    def _copies(self, part: Part) -> bool:
        """Whether a tensor that one input alone has is taken as it is."""
        alone = len(part.used) == 1 < len(part.names)
        return part.copied or (alone and self.method.inputs.if_single != "merged")

    def _check_used(self, tensor: str, part: Part) -> None:
        """Refuse a tensor that too few inputs have, or not the base."""
        if part.copied:
            return
        alone = self.method.inputs.if_single
        if self._copies(part) and (alone == "copied" or part.base is not None):
            return
        if error := self._refusal(tensor, part):
            raise error

    def _refusal(self, tensor: str, part: Part) -> UserError | None:
        """Return why the method cannot do with the inputs that have a tensor, None if it can."""
        piece = part.piece
        lacking = [piece.models[i].name for i in range(len(part.names)) if i not in part.used]
        told = side_by_side(part.lead[0], piece.models[part.names.index(None)])
        error = UserError(
            f"tensor {tensor!r} is not in {lacking[0]!r}, and merge_method {self.method.name!r} "
            "cannot do without it",
            piece.where,
            " ".join(filter(None, [told, "Merge models that all have the tensor."])),
        )
        if piece.base is not None and part.base is None and self.method.inputs.base != "ignored":
            return error
        chosen = tuple(piece.inputs[i] for i in part.used)
        base = None if part.base is None else chosen[part.base].model
        try:
            check_inputs(chosen, self.method, base, piece.where)
        except UserError:
            return error
        return None


def _promoted(part: Part) -> str:
    return promoted(model.table[name].dtype for model, name in part.inputs)


def _cast(operand: ex.Expression, have: str, want: str) -> ex.Expression:
    return operand if have == want else ex.Cast(operand, want)


def _select(call: ex.Call, keep: list[int]) -> ex.Call:
    return ex.Call(
        method=call.method,
        inputs=tuple(call.inputs[i] for i in keep),
        base=keep.index(call.base) if call.base in keep else None,
        parameters=call.parameters,
        per_input=tuple((k, tuple(v[i] for i in keep)) for k, v in call.per_input),
        tensor=call.tensor,
        models=tuple(call.models[i] for i in keep),
        output_shape=call.output_shape,
    )
