"""Every tensor of every stage as an expression over source tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from shardmerge import expression as ex
from shardmerge import fold, registry
from shardmerge.dtypes import DTYPES
from shardmerge.errors import UserError, did_you_mean
from shardmerge.lock import Lock
from shardmerge.names import is_derived, is_head, layer_counts, layer_fraction, module_of
from shardmerge.parameters import Rule, resolve
from shardmerge.recipe import Recipe, Stage
from shardmerge.references import Reference
from shardmerge.spec import OutputTensor

MERGEKIT = "mergekit-0.1.5"


@dataclass(frozen=True)
class Entry:
    """A tensor of a model: dtype code and shape."""

    dtype: str
    shape: tuple[int, ...]


class Composer:
    """Expressions of one recipe's stages.

    Args:
        recipe: The parsed recipe.
        lock: Its sources.
        numerics: One of ``spec.NUMERICS``.
        delta_dtype: Code of the type of task vectors, or None for the stage's own.
    """

    def __init__(
        self, recipe: Recipe, lock: Lock, numerics: str, delta_dtype: str | None = None
    ) -> None:
        self.recipe = recipe
        self.lock = lock
        self.numerics = numerics
        self.delta_dtype = delta_dtype
        self._models: dict[str, _Model] = {}

    def outputs(self, stage: str) -> list[OutputTensor]:
        """Return the tensors of a stage built as a model, in the order of its reference model.

        Raises:
            UserError: For shapes that differ, missing tensors, filters that match nothing.
        """
        model = self.model(Reference(stage))
        return [
            OutputTensor(name, entry.dtype, entry.shape, model.expression(name))
            for name, entry in model.table.items()
        ]

    def model(self, reference: Reference) -> _Model:
        """Return the model that a reference names: a stage's result or a source."""
        key = reference.model
        if reference.lora:
            raise UserError(
                f"model {str(reference)!r} has a LoRA adapter, which is not supported yet",
                self.recipe.path,
                "Merge the adapter into its model first, and name the result.",
            )
        if key not in self._models:
            if key in self.recipe.stages:
                self._models[key] = _StageModel(self, self.recipe.stages[key])
            else:
                self._models[key] = _SourceModel(key, self.lock)
        return self._models[key]

    def reference_source(self, stage: str) -> str:
        """Return the source whose config and layout a stage takes, through other stages."""
        key = stage
        while key in self.recipe.stages:
            key = self.recipe.stages[key].reference_model.model
        return key


class _Model:
    name: str
    table: Mapping[str, Entry]

    def expression(self, tensor: str) -> ex.Expression:
        raise NotImplementedError

    def row(self, tensor: str) -> fold.Row:
        raise NotImplementedError


class _SourceModel(_Model):
    def __init__(self, key: str, lock: Lock) -> None:
        self.name = key
        source = lock.sources[key]
        ordered = sorted(source.tensors.items(), key=lambda i: (i[1].file, i[1].begin, i[0]))
        self.table = {name: Entry(t.dtype, t.shape) for name, t in ordered}
        self._leaves = {name: ex.Source(key, t.file, name, t.dtype, t.shape) for name, t in ordered}

    def expression(self, tensor: str) -> ex.Expression:
        return self._leaves[tensor]

    def row(self, tensor: str) -> fold.Row:
        return fold.leaf(self._leaves[tensor])


class _StageModel(_Model):
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
        names = _common_tensors(reference, self.inputs, self.stage)
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
        delta_dtype = self.composer.delta_dtype or self.stage.dtype
        return fold.apply_form(
            self._linear_form(tensor),
            rows,
            self.base,
            delta_dtype or self._promoted(tensor),
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


def _common_tensors(reference: _Model, inputs: list[_Model], stage: Stage) -> list[str]:
    """Return the names of the output's tensors, in the reference model's order, after checks."""
    dropped = set()
    for model in inputs:
        for name in [*reference.table, *model.table]:
            if name in reference.table and name in model.table:
                continue
            if is_derived(name):
                dropped.add(name)
                continue
            has, lacks = (reference, model) if name in reference.table else (model, reference)
            hint = None
            if is_head(name):
                hint = (
                    f"The embeddings of {lacks.name!r} are tied (input and output share one "
                    f"tensor), those of {has.name!r} are not; such models cannot be merged."
                )
            raise UserError(
                f"tensor {name!r} is in {has.name!r} but not in {lacks.name!r}", stage.where, hint
            )
    names = [name for name in reference.table if name not in dropped]
    for model in inputs:
        for name in names:
            mine, its = reference.table[name].shape, model.table[name].shape
            if mine != its:
                raise UserError(
                    f"tensor {name!r} has shape {list(mine)} in {reference.name!r} but "
                    f"{list(its)} in {model.name!r}",
                    stage.where,
                    "Only models of one architecture and size can be merged.",
                )
    return names
