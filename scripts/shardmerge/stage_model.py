"""A stage as a model: what its method makes of its inputs, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from shardmerge import expression as ex
from shardmerge import fold, norms, registry
from shardmerge.agreement import common_tensors
from shardmerge.dtypes import DTYPES
from shardmerge.errors import UserError, did_you_mean
from shardmerge.models import Entry, Model
from shardmerge.names import layer_counts, layer_fraction, module_of
from shardmerge.parameters import Rule, resolve
from shardmerge.spec import MERGEKIT
from shardmerge.stage import Stage

if TYPE_CHECKING:
    from shardmerge.compose import Composer


class StageModel(Model):
    """A stage of the recipe; made by its composer, which knows the models that it reads."""

    def __init__(self, composer: Composer, stage: Stage) -> None:
        self.name = stage.name
        self.stage = stage
        self.method = registry.method(stage.method, stage.where)
        self.composer = composer
        (self.slice,) = stage.slices
        self.inputs = [composer.model(i.model) for i in self.slice.inputs]
        base = self.slice.base_model or stage.base_model
        models = [i.model for i in self.slice.inputs]
        self.base = models.index(base) if base in models else None
        self._shared_levels = [self.slice.parameters, stage.parameters]
        self._rows: dict[str, fold.Row] = {}
        self._values: dict[tuple, tuple] = {}
        self._check_filters()

    @cached_property
    def table(self) -> Mapping[str, Entry]:
        reference = self.composer.model(self.stage.reference_model)
        names = common_tensors(reference, self.inputs, self.stage)
        return {name: Entry(self._dtype(name), reference.table[name].shape) for name in names}

    @cached_property
    def counts(self) -> dict[str, int]:
        return layer_counts(self.table)

    def expression(self, tensor: str) -> ex.Expression:
        if not self._mergeable(tensor):
            return self.composer.model(self.stage.reference_model).expression(tensor)
        if self.composer.numerics == MERGEKIT:
            return self._mergekit_expression(tensor)
        found = fold.to_expression(self.row(tensor))
        if found is None:
            raise UserError(
                f"every weight is 0 for tensor {tensor!r}, so nothing is left of it",
                self.stage.where,
                "Give one of the models a weight that is not 0 there.",
            )
        return found

    def row(self, tensor: str) -> fold.Row:
        if tensor not in self._rows:
            self._rows[tensor] = self._row(tensor)
        return self._rows[tensor]

    def _row(self, tensor: str) -> fold.Row:
        if not self._mergeable(tensor):
            return self.composer.model(self.stage.reference_model).row(tensor)
        if self.method.linear is None:
            inputs = []
            for model in self.inputs:
                if (operand := fold.to_expression(model.row(tensor))) is None:
                    raise UserError(
                        f"tensor {tensor!r} of {model.name!r} is 0 everywhere", self.stage.where
                    )
                inputs.append(operand)
            return fold.leaf(self._call(tensor, tuple(inputs)))
        rows = [model.row(tensor) for model in self.inputs]
        form = self._linear_form(tensor)
        if self.name in self.composer.geometric and norms.is_scale(tensor):
            return self._ratio_row(tensor, form, rows)
        delta_dtype = self.composer.delta_dtype or self.stage.dtype
        return fold.apply_form(form, rows, self.base, delta_dtype or self._promoted(tensor))

    def _ratio_row(self, tensor: str, form: registry.LinearForm, rows: list[fold.Row]) -> fold.Row:
        source = self.composer.reference_source(self.name)
        return norms.ratio_row(
            form,
            self.base,
            rows,
            [model.name for model in self.inputs],
            tensor,
            self.table[tensor].shape,
            norms.offset(self.composer.lock.sources[source].config, tensor),
        )

    def _linear_form(self, tensor: str) -> registry.LinearForm:
        shared, per_input = self._parameters(tensor)
        models = tuple(model.name for model in self.inputs)
        try:
            return self.method.linear(registry.Request(models, self.base, shared, per_input))
        except UserError as error:
            raise UserError(
                f"{error.message} (tensor {tensor!r})", self.stage.where, error.hint
            ) from None

    def _call(self, tensor: str, inputs: tuple[ex.Expression, ...]) -> ex.Call:
        shared, per_input = self._parameters(tensor)
        if not self.method.deterministic:
            # Two stages of one random method must not draw the same numbers.
            shared = shared | {"stage": self.stage.name}
        return ex.Call(
            method=self.method.name,
            inputs=inputs,
            base=self.base,
            parameters=tuple(sorted(shared.items())),
            per_input=tuple(sorted(per_input.items())),
            tensor=tensor,
            models=tuple(model.name for model in self.inputs),
            output_shape=self.table[tensor].shape,
        )

    def _mergekit_expression(self, tensor: str) -> ex.Expression:
        dtype = self.stage.dtype or self._promoted(tensor)
        inputs = tuple(
            _cast(model.expression(tensor), model.table[tensor].dtype, dtype)
            for model in self.inputs
        )
        call = self._call(tensor, inputs)
        if self.method.name == "linear":
            # A term of weight 0 adds +0, which changes no finite value: it need not be read.
            self._linear_form(tensor)
            weights = dict(call.per_input)["weight"]
            keep = [i for i, w in enumerate(weights) if w != 0] or [0]
            call = _select(call, keep)
        made = registry.result_dtype(self.method.name, MERGEKIT, dtype)
        return _cast(call, made, self.table[tensor].dtype)

    def _dtype(self, tensor: str) -> str:
        entry = self.composer.model(self.stage.reference_model).table[tensor]
        if not DTYPES[entry.dtype].floating:
            return entry.dtype
        if self.stage.out_dtype:
            return self.stage.out_dtype
        dtype = self.stage.dtype or self._promoted(tensor)
        if self.composer.numerics == MERGEKIT:
            return registry.result_dtype(self.method.name, MERGEKIT, dtype)
        return dtype

    def _promoted(self, tensor: str) -> str:
        codes = dict.fromkeys(model.table[tensor].dtype for model in self.inputs)
        if len(codes) == 1:
            return next(iter(codes))
        return "F64" if "F64" in codes else "F32"

    def _mergeable(self, tensor: str) -> bool:
        return all(DTYPES[model.table[tensor].dtype].floating for model in self.inputs)

    def _parameters(self, tensor: str) -> tuple[dict, dict]:
        # Values depend on the tensor through the rules that match and through t alone.
        t = layer_fraction(tensor, self.counts)
        matches = tuple(rule.matches(tensor) for rule in self._filtered_rules)
        if (t, matches) not in self._values:
            self._values[t, matches] = self._resolve(tensor, t)
        return self._values[t, matches]

    def _resolve(self, tensor: str, t: float) -> tuple[dict, dict]:
        where = self.stage.where
        shared, per_input = {}, {}
        for parameter in self.method.parameters:
            if parameter.scope == "shared":
                value = resolve(parameter, self._shared_levels, tensor, t, where)
                shared[parameter.name] = value
                continue
            per_input[parameter.name] = tuple(
                None
                if parameter.scope == "model" and i == self.base
                else resolve(
                    parameter,
                    [item.parameters, *self._shared_levels],
                    tensor,
                    t,
                    item.where,
                    str(item.model),
                )
                for i, item in enumerate(self.slice.inputs)
            )
        models = tuple(model.name for model in self.inputs)
        if self.method.check is None:
            return shared, per_input
        try:
            self.method.check(registry.Request(models, self.base, shared, per_input))
        except UserError as error:
            raise UserError(
                f"{error.message} (tensor {tensor!r})", error.where or where, error.hint
            ) from None
        return shared, per_input

    @cached_property
    def _filtered_rules(self) -> list[Rule]:
        names = {p.name for p in self.method.parameters}
        return [
            rule
            for settings in self.stage.levels
            for name, setting in settings.items()
            if name in names
            for rule in setting.rules
            if rule.filter not in (None, "*")
        ]

    def _check_filters(self) -> None:
        for rule in self._filtered_rules:
            if not any(rule.matches(name) for name in self.table):
                words = {w for name in self.table for w in [module_of(name), *name.split(".")]}
                raise UserError(
                    f"the filter {rule.filter!r} matches no tensor of the model",
                    rule.where,
                    did_you_mean(rule.filter, {w for w in words if not w.isdigit()}),
                )


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
