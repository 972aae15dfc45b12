"""The value that every parameter of a method has for every tensor of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from shardmerge.base.errors import UserError, misspelt
from shardmerge.compose.architecture.fused import FusedPart, FusedTensors
from shardmerge.compose.architecture.names import module_of
from shardmerge.compose.parts import Part
from shardmerge.methods import registry
from shardmerge.recipe.parameters import Rule, Setting, resolve
from shardmerge.recipe.stage import Stage

#: Values of shared parameters, and of the others for each input that has the tensor.
Values = tuple[dict[str, Any], dict[str, tuple[Any, ...]]]


class Resolver:
    """Finds parameter values in a stage's settings.

    Args:
        stage: The stage.
        method: Its method.
        parts: What its tensors are made from.
        fused: Knows which of them several projections share.
        splits: Whether projections that share a tensor may be merged by themselves.

    Attributes:
        unmatched: Rules whose filter matches no tensor.

    Raises:
        UserError: If such a filter is surely misspelt.
    """

    def __init__(
        self,
        stage: Stage,
        method: registry.MergeMethod,
        parts: Mapping[str, Part],
        fused: FusedTensors,
        splits: bool = False,
    ) -> None:
        self.stage = stage
        self.method = method
        self.parts = parts
        self._rules = list(self._filtered(stage.levels))
        self._fused, self._splits = fused, splits
        self._known: dict[tuple, Values] = {}
        self._requests: dict[int, registry.Request] = {}
        self.unmatched = list(self._unmatched())

    @property
    def ruled(self) -> bool:
        """Whether a value is given for some tensors alone."""
        return bool(self._rules)

    def values(self, tensor: str) -> Values:
        """Return a tensor's values.

        Raises:
            UserError: If one is missing or out of bounds, or they do not go together.
        """
        return self._values(tensor, self.parts[tensor])

    def _values(self, tensor: str, part: Part) -> Values:
        # They depend on the tensor through its slice, t and the rules that match alone.
        key: tuple[Any, ...] = (part.piece.number, part.t, part.used)
        if self._rules:
            names = (tensor, *part.labels)
            found = {n: tuple([r.matches(n) for r in self._rules]) for n in dict.fromkeys(names)}
            key += tuple([found[n] for n in names])
        if key not in self._known:
            self._known[key] = self._resolve(tensor, part)
        return self._known[key]

    def request(self, tensor: str) -> registry.Request:
        """Return what a linear method is asked for a tensor: one object for all alike."""
        values = self.values(tensor)
        # of the same values, since these are kept by all that a request depends on
        if id(values) not in self._requests:
            self._requests[id(values)] = self._request(self.parts[tensor], *values)
        return self._requests[id(values)]

    def apart(self, tensor: str) -> dict[int, tuple[registry.Request, list[FusedPart]]]:
        """Return what is asked for the projections that share a tensor.

        Returns:
            The requests by number, each with its projections; nothing where all are one.
        """
        if not (self._splits and self._rules):
            return {}
        own = self._projections(tensor)
        if not own or None in [one.first for one in own] or self._is_unclear(tensor, own):
            return {}
        part = self.parts[tensor]
        columns = [self._projections(label, tensor) for label in part.labels]
        found: dict[tuple, tuple[registry.Request, list[FusedPart]]] = {}
        for number, one in enumerate(own):
            labels = tuple(column[number].name for column in columns)
            shared, per_input = self._values(one.name, replace(part, labels=labels))
            key = (*sorted(shared.items()), *sorted(per_input.items()))
            request = self._request(part, shared, per_input)
            found.setdefault(key, (request, []))[1].append(one)
        return dict(enumerate(found.values())) if len(found) > 1 else {}

    @cached_property
    def unclear(self) -> dict[str, list[Rule]]:
        """Rules that name some projections of a tensor which is merged as a whole, by tensor."""
        found = {}
        for tensor in self.parts if self._rules else ():
            own = self._projections(tensor)
            split = self._splits and own and own[0].first is not None
            mixed = [rule for rule in self._rules if len({rule.matches(o.name) for o in own}) > 1]
            if mixed and not (split and not self._is_unclear(tensor, own)):
                found[tensor] = mixed
        return found

    def _is_unclear(self, tensor: str, own: Iterable[FusedPart]) -> bool:
        """Whether a rule matches a tensor's own name, but not those of all its projections."""
        rules = [rule for rule in self._rules if rule.matches(tensor)]
        return any(not rule.matches(one.name) for rule in rules for one in own)

    def _projections(self, name: str, tensor: str | None = None) -> tuple[FusedPart, ...]:
        model, own = self.parts[tensor or name].lead
        return self._fused.parts(name, model.table[own].shape)

    def _request(self, part: Part, shared: dict, per_input: dict) -> registry.Request:
        models = tuple(part.piece.models[i].name for i in part.used)
        return registry.Request(models, part.base, shared, per_input)

    def _resolve(self, tensor: str, part: Part) -> Values:
        piece = part.piece
        shared, per_input = {}, {}
        for parameter in self.method.parameters:
            if parameter.scope == "shared":
                value = resolve(parameter, piece.levels, tensor, part.t, self.stage.where)
                shared[parameter.name] = value
                continue
            per_input[parameter.name] = tuple(
                None
                if parameter.scope == "model" and i == piece.base
                else resolve(
                    parameter,
                    [piece.inputs[i].parameters, *piece.levels],
                    part.labels[i],
                    part.t,
                    piece.inputs[i].where,
                    str(piece.inputs[i].model),
                )
                for i in part.used
            )
        if self.method.check is None:
            return shared, per_input
        try:
            self.method.check(self._request(part, shared, per_input))
        except UserError as error:
            raise UserError(
                f"{error.message} (tensor {tensor!r})", error.where or piece.where, error.hint
            ) from None
        return shared, per_input

    def _filtered(self, levels: Iterable[Mapping[str, Setting]]) -> Iterable[Rule]:
        names = {p.name for p in self.method.parameters}
        for settings in levels:
            for name, setting in settings.items():
                if name in names:
                    yield from (r for r in setting.rules if r.filter not in (None, "*"))

    def _unmatched(self) -> Iterable[Rule]:
        if not self._rules:
            return
        names = dict.fromkeys(self.parts)
        names |= {one.name: None for tensor in self.parts for one in self._projections(tensor)}
        for piece in {part.piece.number: part.piece for part in self.parts.values()}.values():
            for model in piece.models:
                names |= dict.fromkeys(model.table)
        words = {w for name in names for w in [module_of(name), *name.split(".")]}
        words = {w for w in words if not w.isdigit()}
        for rule in self._rules:
            if any(rule.matches(name) for name in names):
                continue
            near = misspelt(rule.filter, words)
            if near and near not in rule.filter:  # else it asks for more, such as another layer
                raise UserError(
                    f"the filter {rule.filter!r} matches no tensor of the model",
                    rule.where,
                    f"Did you mean {near!r}?",
                )
            yield rule
