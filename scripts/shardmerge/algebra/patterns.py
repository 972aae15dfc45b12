"""Expressions that differ in the names of their tensors alone, of which a model has thousands.

What is found of one of them, and depends on no such name, holds of all. The specification of a job
is long text in which only these names differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from shardmerge.algebra import expression as ex
from shardmerge.algebra.json import to_json
from shardmerge.algebra.pieces import Patch
from shardmerge.algebra.tensors import noted
from shardmerge.base.digest import canonical_json, quoted

_T = TypeVar("_T")
#: Writes a tensor of a source as JSON-able data: given it, what stands for its file, and its name.
Write = Callable[[ex.Source, str, str], Any]

#: How the name of a bias ends that an adapter adds to the model's: a part of the pattern.
ADDED_BIAS = ".lora_B.bias"
_FIELDS = {
    kind: tuple(one.name for one in fields(kind))
    for kind in (*ex.Expression.__args__, Patch)
    if kind not in (ex.Source, ex.Decoded)
}
_CALL = tuple(name for name in _FIELDS[ex.Call] if name not in ("inputs", "tensor"))


class ExpressionPattern:
    """What expressions have in common that differ in names of files and tensors alone.

    Models, types, shapes, coefficients and parameters belong to it, and which names are the same.
    There is one object for all of these expressions.
    """

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}


class TensorKind:
    """What tensors of files have in common that differ in their names alone: one object for all."""

    __slots__ = ()


class _Text(NamedTuple):
    """Canonical JSON with ``%s`` for names.

    Args:
        text: The text.
        names: The number of each name, and whether it is a file's.
        calls: Whether some are those of calls' tensors.
    """

    text: str
    names: tuple[tuple[int, bool], ...]
    calls: bool


_PATTERNS: dict[Any, ExpressionPattern] = {}
_KINDS: dict[Any, TensorKind] = {}


def pattern(expression: ex.Expression) -> ExpressionPattern:
    """Return the pattern of an expression."""
    try:
        return expression._pattern[0]  # as ``noted`` keeps it: a plan asks for it a million times
    except AttributeError:
        return noted(expression, "_pattern", _pattern)[0]


def alike(expression: ex.Expression, find: Callable[[ex.Expression], _T]) -> _T:
    """Return what is found of an expression; it is looked for once for all of a pattern.

    Args:
        expression: The expression.
        find: A function of a module, which uses no names of files and tensors.
    """
    found = pattern(expression).found
    try:
        return found[find]
    except KeyError:
        found[find] = find(expression)
        return found[find]


def one_of_each(expressions: Iterable[ex.Expression]) -> list[ex.Expression]:
    """Return the first expression of each pattern, in their order."""
    found: dict[ExpressionPattern, ex.Expression] = {}
    for expression in expressions:
        found.setdefault(pattern(expression), expression)
    return list(found.values())


def json_text(expression: ex.Expression, write: Write, files: Mapping[tuple[str, str], str]) -> str:
    """Return an expression's canonical JSON.

    Args:
        expression: The expression.
        write: How tensors of sources are written, a function of a module.
        files: What stands for the file of such a tensor, as JSON, by model and file.
    """
    found = pattern(expression).found
    names: tuple[ex.Source | str, ...] = expression._pattern[1]
    template: _Text | None = found.get(write)
    if template is None:
        template = found[write] = _template(expression, write, names)
    if template.calls:
        tensors = [quoted(one if type(one) is str else one.tensor) for one in names]
    else:
        tensors = [quoted(one[2]) for one in names]
    values = [files[names[n][:2]] if is_file else tensors[n] for n, is_file in template.names]
    return template.text % tuple(values)


def kind_of(tensor: ex.Expression) -> TensorKind | None:
    """Return what decides what patterns a tensor of files has a part in: all but its names.

    Returns:
        None if it is made otherwise, or of one stored tensor twice.
    """
    if type(tensor) is not ex.Source and type(tensor) is not ex.Decoded:
        return None
    names: dict[ex.Source | str, int] = {}
    facts = _facts(tensor, names)
    if type(tensor) is ex.Decoded and len(names) < len(tensor.parts):
        return None
    return _KINDS.setdefault(facts, TensorKind())


def note_alike(expression: ex.Linear, other: ex.Linear, sources: tuple[ex.Source, ...]) -> None:
    """Note that a sum differs from another in the names of its tensors alone.

    Args:
        expression: The sum, in which no tensor of a source is named twice.
        other: The other one, likewise, with tensors of the same kinds in the same places.
        sources: The tensors of sources that the first names, in order of first use.
    """
    object.__setattr__(expression, "_pattern", (pattern(other), sources))
    object.__setattr__(expression, "_sources", sources)
    object.__setattr__(expression, "_size", other.size)


def _pattern(expression: ex.Expression) -> tuple[ExpressionPattern, tuple[ex.Source | str, ...]]:
    """Return an expression's pattern, and the tensors that it names: of sources, and of calls."""
    names: dict[ex.Source | str, int] = {}
    key = _facts(expression, names)
    return _PATTERNS.setdefault(key, ExpressionPattern()), tuple(names)


def _facts(value: Any, names: dict[ex.Source | str, int]) -> Any:
    """Return a part of an expression without names, so that equal ones are written alike."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is tuple:
        return tuple([_facts(one, names) for one in value])
    if kind is ex.Source:
        number = names.setdefault(value, len(names))
        is_bias = value.tensor.endswith(ADDED_BIAS)
        return (kind, number, value.model, value.dtype, value.shape, is_bias)
    if kind is ex.Decoded:
        parts = [(role, _facts(source, names)) for role, source in value.parts]
        held = value.format, repr(value.parameters), value.output_shape, value.step
        return (kind, *held, *parts)
    if kind is ex.Linear:
        return (kind, *[(repr(c), _facts(operand, names)) for c, operand in value.terms])
    if kind is ex.Call:
        number = names.setdefault(value.tensor, len(names))
        inputs = [_facts(operand, names) for operand in value.inputs]
        held = [_facts(getattr(value, field), names) for field in _CALL]
        return (kind, number, tuple(inputs), *held)
    if kind in _FIELDS:
        return (kind, *[_facts(getattr(value, field), names) for field in _FIELDS[kind]])
    return kind, repr(value)  # 1, 1.0 and true are equal, and are not written alike


def _template(expression: ex.Expression, write: Write, names: tuple[ex.Source | str, ...]) -> _Text:
    numbers = {name: number for number, name in enumerate(names)}
    mark, plain = "@", canonical_json(to_json(expression))
    while mark in plain:
        mark += "@"

    def source(one: ex.Source) -> Any:
        number = numbers[one]
        return write(one, f"{mark}{number}f", f"{mark}{number}t")

    data = to_json(expression, source, lambda tensor: f"{mark}{numbers[tensor]}t")
    place = re.compile(f'"{mark}([0-9]+)([ft])"')
    text = canonical_json(data).replace("%", "%%")
    found = [(int(number), kind == "f") for number, kind in place.findall(text)]
    return _Text(place.sub("%s", text), tuple(found), any(type(one) is str for one in names))
