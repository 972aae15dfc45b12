"""Documents of mergekit-evolve as recipes with gaps: what each number of a genotype stands for.

A genotype has a number for each group of layers, model, filter and parameter of the method. Here
the numbers of all groups are one variable, a list. What they make is what mergekit-evolve makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.recipe.nodes import Node
from shardmerge.recipe.references import parse_reference
from shardmerge.sweep.template import written_recipe

#: What mergekit-evolve varies of each method.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
_NEEDS_BASE = ("task_arithmetic", "ties", "dare_ties")
_NORMALIZED = ("linear", "ties", "dare_ties")
_KEYS = (
    *("models", "merge_method", "base_model", "tokenizer_source", "layer_granularity"),
    *("normalize", "allow_negative_weights", "filters", "smooth"),
)
#: How far apart slerp's preferences may be: from 0.02 to the middle between two models.
_PREFERENCE = 2.0


@dataclass(frozen=True)
class Genome:
    """What mergekit-evolve calls a genome.

    Args:
        path: Of its file.
        models: That are merged.
        method: One of ``PARAMETERS``.
        base: The base model, or None.
        tokenizer: The recipe's ``tokenizer_source``, or None.
        granularity: Layers in a group, or 0 for all in one.
        normalize: Whether weights are divided by their sum.
        negative: Whether weights may be below 0.
        filters: Of tensors' names; all others have numbers of their own.
        smooth: Whether groups are points of a gradient.
        layers: Of the models.
    """

    path: str
    models: tuple[str, ...]
    method: str
    base: str | None
    tokenizer: str | None
    granularity: int
    normalize: bool
    negative: bool
    filters: tuple[str, ...]
    smooth: bool
    layers: int

    @property
    def groups(self) -> int:
        """Groups of layers."""
        return self.layers // self.granularity if self.granularity else 1

    @property
    def parts(self) -> list[tuple[int, str | None, str]]:
        """Of each variable the model's number, the filter, the parameter."""
        every = (*self.filters, None)
        parameters = PARAMETERS[self.method]
        return [(m, f, p) for m in range(len(self.models)) for f in every for p in parameters]

    @property
    def names(self) -> list[str]:
        """Names of the variables, in the order of ``parts``."""
        found: dict[str, None] = {}
        for number, kind, parameter in self.parts:
            words = [self.models[number].rstrip("/").rpartition("/")[2], parameter, kind]
            name = own = "_".join(filter(None, words))
            if name in found:
                own = f"{name}_{number + 1}"
            found[own] = None
        return list(found)

    def space(self) -> dict[str, dict[str, Any]]:
        """Return what each variable may be, as a configuration has it."""
        low = -1.0 if self.negative else 0.0
        bounds = {"weight": (low, 1.0), "density": (0.0, 1.0), "t": (-_PREFERENCE, _PREFERENCE)}
        found = {}
        for name, (_, _, parameter) in zip(self.names, self.parts, strict=True):
            ends = bounds[parameter]
            found[name] = {"low": ends[0], "high": ends[1], "points": self.groups}
        return found

    def first(self) -> dict[str, list[float]]:
        """Return the point that mergekit-evolve begins with: all models alike, nothing left out."""
        values = {"density": 1.0}
        alike = float(f"{1 / len(self.models):.6g}")
        named = zip(self.names, self.parts, strict=True)
        return {name: [values.get(part[2], alike)] * self.groups for name, part in named}

    def check(self, names: Mapping[str, Any] | set[str], where: str) -> None:
        """Make sure that variables are those of the genome.

        Raises:
            UserError: If one is not, or one is missing.
        """
        own = self.names
        for name in names:
            if name not in own:
                message = f"{name!r} is no variable of the genome in {self.path}"
                raise UserError(message, where, did_you_mean(name, own))
        for name in own:
            if name not in names:
                raise UserError(f"has no {name!r}, a variable of {self.path}", where)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the recipe that values make.

        Args:
            values: Of each variable a number for each group of layers.
        """
        numbers = {part: values[name] for name, part in zip(self.names, self.parts, strict=True)}
        recipe: dict[str, Any] = {"merge_method": self.method}
        if self.method == "slerp":
            recipe["slices"] = [self._slerp(numbers, group) for group in range(self.groups)]
        elif self.smooth:
            recipe["models"] = self._smooth(numbers)
        else:
            recipe["slices"] = [self._slice(numbers, group) for group in range(self.groups)]
        recipe["parameters"] = {"normalize": self.normalize, "int8_mask": True}
        recipe |= {"base_model": self.base} if self.base else {}
        recipe |= {"tokenizer_source": self.tokenizer} if self.tokenizer else {}
        return written_recipe([recipe | {"dtype": "bfloat16"}], self.path)

    def _slice(self, numbers: Mapping[Any, Sequence[float]], group: int) -> dict[str, Any]:
        """Return a slice of the output: each model with its own numbers."""
        sources = [
            {**self._source(model, group), "parameters": self._parameters(numbers, number, group)}
            for number, model in enumerate(self.models)
        ]
        return {"sources": [*sources, *self._base_source(group)]}

    def _smooth(self, numbers: Mapping[Any, Sequence[float]]) -> list[dict[str, Any]]:
        """Return the models with gradients over all layers."""
        whole = [0, self.layers]
        found: list[dict[str, Any]] = [
            {"model": m, "layer_range": whole, "parameters": self._parameters(numbers, i, None)}
            for i, m in enumerate(self.models)
        ]
        return found + ([{"model": self.base}] if self._has_other_base else [])

    def _parameters(
        self, numbers: Mapping[Any, Sequence[float]], model: int, group: int | None
    ) -> dict[str, Any]:
        """Return a model's parameters in a group of layers, or as gradients."""

        def value(kind: str | None, parameter: str) -> Any:
            held = [self._held(parameter, number) for number in numbers[model, kind, parameter]]
            return held[group or 0] if group is not None or len(held) == 1 else held

        return {
            parameter: [
                *({"filter": kind, "value": value(kind, parameter)} for kind in self.filters),
                {"value": value(None, parameter)},
            ]
            if self.filters
            else value(None, parameter)
            for parameter in PARAMETERS[self.method]
        }

    def _held(self, parameter: str, number: float) -> float:
        """Return what a number means: a density is a share, a weight is not below 0 unless said."""
        if parameter == "density":
            return min(abs(float(number)), 1.0)
        return float(number) if self.negative else abs(float(number))

    def _slerp(self, numbers: Mapping[Any, Sequence[float]], group: int) -> dict[str, Any]:
        """Return a slice between the two models that are preferred there, the first as its base."""
        liked = [numbers[number, None, "t"][group] for number in range(len(self.models))]
        first, second = sorted(range(len(liked)), key=lambda i: -liked[i])[:2]
        t = 1 / (1 + math.exp(liked[first] - liked[second]))
        sources = [self._source(self.models[i], group) for i in (first, second)]
        if self.tokenizer:
            for source, weight in zip(sources, (1 - t, t), strict=True):
                source["parameters"] = {"weight": weight}
        return {"sources": sources, "base_model": self.models[first], "parameters": {"t": t}}

    def _source(self, model: str, group: int) -> dict[str, Any]:
        step = self.granularity or self.layers
        return {"model": model, "layer_range": [group * step, (group + 1) * step]}

    @property
    def _has_other_base(self) -> bool:
        return self.base is not None and self.base not in self.models

    def _base_source(self, group: int) -> list[dict[str, Any]]:
        return [self._source(self.base, group)] if self.base and self._has_other_base else []


def first_model(document: Node) -> str:
    """Return the model whose number of layers counts.

    Raises:
        UserError: If the document names none.
    """
    return _models(document.mapping("the document")["genome"].mapping("`genome`", _KEYS))[0]


def parse_genome(document: Node, layers: int) -> Genome:
    """Return the genome of a document.

    Args:
        document: With the key ``genome``.
        layers: Of its first model.

    Raises:
        UserError: If mergekit-evolve would not take it.
    """
    node = document.mapping("the document")["genome"]
    given = node.mapping("`genome`", _KEYS)
    models = _models(given)
    if "merge_method" not in given:
        raise node.error("`genome` has no merge_method")
    method = given["merge_method"].text("merge_method")
    if method not in PARAMETERS:
        message = f"mergekit-evolve varies no {method!r}"
        raise given["merge_method"].error(message, f"It knows {', '.join(PARAMETERS)}.")
    base = _reference(given["base_model"]) if _is_given(given, "base_model") else None
    if method in _NEEDS_BASE and base is None:
        raise node.error(f"`merge_method: {method}` needs a base_model")
    if method == "slerp" and len(models) < 2:
        raise given["models"].error("slerp needs two models")
    if method == "slerp" and base and base not in models:
        hint = "Leave it out: of two models the one that is preferred is the base."
        raise given["base_model"].error("slerp takes two models, and no base besides", hint)
    filters = given["filters"].sequence("filters") if _is_given(given, "filters") else []
    smooth = _truth(given, "smooth", default=False)
    if method == "slerp" and (smooth or filters):
        raise node.error("slerp knows neither `smooth` nor `filters`")
    granularity = _count(given)
    if granularity and layers % granularity:
        message = f"{layers} layers are no multiple of layer_granularity {granularity}"
        raise given["layer_granularity"].error(message)
    tokenizer = "tokenizer_source"
    return Genome(
        path=document.file,
        models=models,
        method=method,
        base=base,
        tokenizer=given[tokenizer].text(tokenizer) if _is_given(given, tokenizer) else None,
        granularity=granularity,
        normalize=_truth(given, "normalize", default=method in _NORMALIZED),
        negative=_truth(given, "allow_negative_weights", default=False),
        filters=tuple(dict.fromkeys(one.text("a filter") for one in filters)),
        smooth=smooth,
        layers=layers,
    )


def _models(given: Mapping[str, Node]) -> tuple[str, ...]:
    if "models" not in given:
        raise UserError("`genome` has no models", next(iter(given.values())).where)
    found = tuple(_reference(one) for one in given["models"].sequence("models"))
    if not found or len(set(found)) < len(found):
        raise given["models"].error("models are at least one, and each is named once")
    return found


def _reference(node: Node) -> str:
    text = node.text("a model")
    parse_reference(text, node.where)
    return text


def _is_given(given: Mapping[str, Node], key: str) -> bool:
    return key in given and given[key].value is not None


def _truth(given: Mapping[str, Node], key: str, *, default: bool) -> bool:
    if not _is_given(given, key):
        return default
    if not isinstance(given[key].value, bool):
        raise given[key].error(f"{key} is true or false, not {given[key].kind}")
    return given[key].value


def _count(given: Mapping[str, Node]) -> int:
    if not _is_given(given, "layer_granularity"):
        return 0
    node = given["layer_granularity"]
    if type(node.value) is not int:
        raise node.error(f"layer_granularity is a number of layers, not {node.kind}")
    return max(node.value, 0)
