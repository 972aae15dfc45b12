"""What is told of a method that is no sum: its call, and the values of its parameters.

A sum is told by coefficients. Of another method a formula of weights would be wrong, so it is told
by its name, its inputs and its parameters: rows beside the coefficients, whose labels say so.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.methods.registry import MergeMethod, Parameter, methods

_SETTING = re.compile(r"((\w+)\(.*\)): (\w+)(?: of (.+))?", re.DOTALL)


class SettingTerm(NamedTuple):
    """A parameter's row.

    Args:
        call: Label of the method's call.
        method: Its name.
        parameter: As recipes write it.
        model: The input that the value is for, or None if it is for all.
    """

    call: str
    method: str
    parameter: str
    model: str | None


def call_label(call: ex.Call) -> str:
    """Return a call as ``method(base A, B, C)``, with the inputs' names in the recipe."""
    names = input_names(call)
    if call.base is not None:
        names.insert(0, f"base {names.pop(call.base)}")
    return f"{call.method}({', '.join(names)})"


def setting_rows(call: ex.Call) -> list[tuple[str, float]]:
    """Return the rows of a call's parameters, in the order in which the method declares them.

    True is 1 and false 0; a parameter that is not set, or changes nothing, has no row.
    """
    label, names = call_label(call), input_names(call)
    shared, per_input = dict(call.parameters), dict(call.per_input)
    rows: list[tuple[str, float]] = []
    for parameter in _parameters(call.method):
        key = f"{label}: {parameter.name}"
        if parameter.name in per_input:
            values = zip(names, per_input[parameter.name], strict=True)
            rows += [(f"{key} of {n}", float(v)) for n, v in values if v is not None]
        elif isinstance(shared.get(parameter.name), int | float):
            rows.append((key, float(shared[parameter.name])))
    return rows


@cache
def setting_of(label: str) -> SettingTerm | None:
    """Return what a row's label says of a parameter, or None if it is a term of a sum."""
    found = _SETTING.fullmatch(label)
    return SettingTerm(*found.groups()) if found and declared(found[2]) else None


def declared(method: str) -> MergeMethod | None:
    """Return a method of the registry, or None for a step that no recipe names."""
    return next((m for m in methods() if m.name == method), None)


def _parameters(method: str) -> tuple[Parameter, ...]:
    found = declared(method)
    kept = found.parameters if found else ()
    return tuple(p for p in kept if not (p.unused or p.idle))


def input_names(call: ex.Call) -> list[str]:
    """Return what a call's inputs are called: by their models, or by the recipe's name of a sum."""
    models = call.models or ("",) * len(call.inputs)
    return [
        model if model and isinstance(operand, ex.Linear | ex.Call) else ex.label(operand)
        for operand, model in zip(call.inputs, models, strict=True)
    ]
