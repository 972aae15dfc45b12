"""Parameter values: filters, gradients, precedence, and conversion to the declared type."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shardmerge.base.errors import UserError, shortened
from shardmerge.methods.registry import REQUIRED, Parameter
from shardmerge.recipe.nodes import Node

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """One entry of a parameter's list: a value for the tensors whose name holds the filter.

    Args:
        filter: Case-sensitive substring; None or ``*`` matches every tensor.
        value: A scalar, or a tuple of scalars (a gradient over the layers).
        where: File and line.
    """

    filter: str | None
    value: Scalar | tuple[Scalar, ...]
    where: str

    def matches(self, tensor: str) -> bool:
        """Return whether the rule is about a tensor."""
        return self.filter in (None, "*") or self.filter in tensor


@dataclass(frozen=True)
class Setting:
    """What a recipe says about one parameter at one level: rules; the first match counts."""

    rules: tuple[Rule, ...]
    where: str
    _gradients: dict[tuple[int, str], list[Any]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def value(self, tensor: str, t: float, parameter: Parameter) -> Any:
        """Return the value for a tensor at layer fraction ``t``, or None where no rule matches.

        Gradient: ``s = t*(len-1); i = int(s); f = s-i; (1-f)*v[i] + f*v[min(i+1, len-1)]``;
        words and truth values are not interpolated, ``v[int(s)]`` is taken.
        """
        for number, rule in enumerate(self.rules):
            if not rule.matches(tensor):
                continue
            if not isinstance(rule.value, tuple):
                return parameter.clamp(checked_value(rule.value, parameter, rule.where))
            if not rule.value:
                return None
            values = self._gradient(number, parameter)
            scaled = t * (len(values) - 1)
            first = int(scaled)
            if isinstance(values[0], (bool, str)):
                return values[first]
            fraction = scaled - first
            second = min(first + 1, len(values) - 1)
            value = (1 - fraction) * values[first] + fraction * values[second]
            return parameter.clamp(checked_value(value, parameter, rule.where))
        return None

    def _gradient(self, number: int, parameter: Parameter) -> list[Any]:
        """Return a rule's values in the parameter's type; they are asked for by every layer."""
        key = (number, parameter.name)
        if key not in self._gradients:
            rule = self.rules[number]
            self._gradients[key] = [checked_value(v, parameter, rule.where) for v in rule.value]
        return self._gradients[key]


def clamped_rules(setting: Setting, parameter: Parameter) -> Iterator[Rule]:
    """Yield the rules with a number that is beyond a bound which counts in its place."""
    for rule in setting.rules if parameter.clamped else ():
        values = rule.value if isinstance(rule.value, tuple) else (rule.value,)
        with contextlib.suppress(UserError):  # told where the value is used
            checked = [checked_value(value, parameter, rule.where) for value in values]
            if any(parameter.clamp(value) != value for value in checked):
                yield rule


def parse_settings(node: Node) -> dict[str, Setting]:
    """Return the settings of a ``parameters`` mapping.

    Raises:
        UserError: If a value has the wrong form.
    """
    return {
        name: Setting(tuple(_rules(value, name)), value.where)
        for name, value in node.mapping("parameters").items()
        if value.value is not None
    }


def _rules(node: Node, name: str) -> Iterable[Rule]:
    if node.is_scalar:
        return [Rule(None, node.value, node.where)]
    if isinstance(node.value, dict):
        return [_conditional(node, name)]
    items = node.sequence(f"parameter {name!r}")
    if all(item.is_scalar for item in items):
        return [Rule(None, tuple(item.value for item in items), node.where)]
    return [_conditional(item, name) for item in items]


def _conditional(node: Node, name: str) -> Rule:
    if not isinstance(node.value, dict):
        raise node.error(
            f"parameter {name!r} mixes plain values and filters",
            "Give every entry as `- filter: NAME` with `value:`, the last without a filter.",
        )
    table = node.mapping(f"an entry of parameter {name!r}", ("filter", "value"))
    if "value" not in table:
        raise node.error(f"an entry of parameter {name!r} has no `value`")
    value = table["value"]
    pattern = table.get("filter")
    if pattern is not None and pattern.value is not None:
        pattern = pattern.text("a filter")
    else:
        pattern = None
    if isinstance(value.value, list) and all(item.is_scalar for item in value.value):
        return Rule(pattern, tuple(item.value for item in value.value), node.where)
    if not value.is_scalar:
        raise value.error(f"the value of parameter {name!r} must be a number or a list of them")
    return Rule(pattern, value.value, node.where)


def checked_value(value: Scalar, parameter: Parameter, where: str) -> Any:
    """Return a value in the parameter's type, within those of its bounds that do not clamp it.

    Raises:
        UserError: If it is not of the type or out of bounds.
    """
    wrong = UserError(
        f"parameter {parameter.name!r} must be {_KINDS[parameter.type]}, not {shortened(value)}",
        where,
    )
    try:
        if parameter.type is bool:
            result: Any = _BOOLS[str(value).lower()]
        elif parameter.type is str:
            if not isinstance(value, str):
                raise wrong
            result = value
        else:
            result = float(value)
            if not math.isfinite(result):
                raise wrong
            if abs(result) > _LARGEST:
                raise UserError(
                    f"parameter {parameter.name!r} may be {_LARGEST:g} at most, not {value!r}",
                    where,
                )
            if parameter.type is int:
                if result != int(result):
                    raise wrong
                result = int(result)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wrong from None
    low, high = parameter.minimum, parameter.maximum
    if parameter.clamp(result) != result:
        return result
    if (low is not None and result < low) or (high is not None and result > high):
        bounds = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise UserError(f"parameter {parameter.name!r} must be {bounds}, not {value!r}", where)
    if parameter.choices and result not in parameter.choices:
        raise UserError(
            f"parameter {parameter.name!r} must be one of {', '.join(parameter.choices)}, "
            f"not {value!r}",
            where,
        )
    return result


#: Parameters become coefficients, which are rounded to float32.
_LARGEST = 3.0e38
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
_BOOLS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_BOOLS |= {"yes": True, "no": False, "on": True, "off": False}


def resolve(
    parameter: Parameter,
    levels: Iterable[Mapping[str, Setting] | None],
    tensor: str,
    t: float,
    where: str,
    model: str | None = None,
) -> Any:
    """Return a parameter's value for a tensor from the first level that has one.

    Args:
        parameter: Declaration in the method.
        levels: Settings from highest to lowest precedence (input, slice, module, top level);
            filters that miss fall through to the next.
        tensor: Name that the filters look at.
        t: Layer fraction, 0 to 1.
        where: Place of the document, for the error.
        model: Input that the value is for, if it is per input.

    Raises:
        UserError: If no level gives a required parameter.
    """
    for settings in levels:
        if settings and (setting := settings.get(parameter.name)):
            value = setting.value(tensor, t, parameter)
            if value is not None:
                return value
    if parameter.default is REQUIRED:
        of = f" of model {model!r}" if model else ""
        raise UserError(
            f"no `{parameter.name}`{of} for tensor {tensor!r}",
            where,
            f"Give `{parameter.name}` under the model's `parameters` (a last entry without a "
            "filter covers the rest), or under the document's `parameters`.",
        )
    return parameter.default
