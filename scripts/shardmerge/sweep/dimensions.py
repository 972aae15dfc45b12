"""A search's space as optuna has it: a number or a choice for each value that varies by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.sweep.space import Point, Range, ValueList, Variable

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: Value of each of optuna's parameters.
Parameters = Mapping[str, Any]


def distributions(variables: Sequence[Variable]) -> dict[str, BaseDistribution]:
    """Return what optuna chooses from, by the name of a variable or of one of its points.

    Listed values stand for themselves by their places. Numbers in rising order are a scale; other
    values are a choice, of which none is nearer to another.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, BaseDistribution] = {}
    for variable in variables:
        domain = variable.domain
        for name in _names(variable):
            if isinstance(domain, Range):
                found[name] = FloatDistribution(domain.low, domain.high, log=domain.log)
            elif _is_scale(domain):
                found[name] = IntDistribution(0, len(domain.values) - 1)
            else:
                found[name] = CategoricalDistribution(tuple(range(len(domain.values))))
    return found


def point_of(variables: Sequence[Variable], parameters: Parameters) -> Point:
    """Return the values of variables that optuna's parameters stand for."""
    return {
        v.name: v.value([_value(v.domain, parameters[name]) for name in _names(v)])
        for v in variables
    }


def parameters_of(variables: Sequence[Variable], point: Point, where: str) -> Parameters:
    """Return optuna's parameters of a point that a configuration gives.

    Raises:
        UserError: If the point is not in the space.
    """
    found = {}
    for variable in variables:
        value = point[variable.name]
        parts = value if variable.points else [value]
        if not isinstance(parts, list) or len(parts) != variable.width:
            message = f"{variable.name} is a list of {variable.width} values"
            raise UserError(message, where)
        for name, part in zip(_names(variable), parts, strict=True):
            found[name] = _place(variable.domain, part, name, where)
    return found


def _names(variable: Variable) -> Iterator[str]:
    if not variable.points:
        return iter([variable.name])
    return (f"{variable.name}[{i}]" for i in range(variable.width))


def _is_scale(domain: ValueList) -> bool:
    values = domain.values
    numbers = all(type(value) in (int, float) for value in values)
    return numbers and len(values) > 1 and all(a < b for a, b in pairwise(values))


def _value(domain: ValueList | Range, parameter: Any) -> Any:
    return domain.rounded(parameter) if isinstance(domain, Range) else domain.values[parameter]


def _place(domain: ValueList | Range, value: Any, name: str, where: str) -> Any:
    if isinstance(domain, Range):
        if type(value) in (int, float) and domain.low <= value <= domain.high:
            return float(value)
        raise UserError(f"{name} is from {domain.low} to {domain.high}, not {value!r}", where)
    for place, known in enumerate(domain.values):
        if known == value and isinstance(known, bool) == isinstance(value, bool):
            return place
    raise UserError(f"{name} cannot be {str(value)[:80]!r}", where, "Give a value of the space.")
