"""What every layer and module is made of: coefficients of sources and task vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardmerge import expression as ex
from shardmerge.report.frame import Cell, Frame, frame_of

#: Rows of [label, coefficient], as the description of a build has them for each tensor.
Terms = Iterable[Iterable[Any]]


@dataclass(frozen=True)
class Spread:
    """A cell's value: the mean over its tensors (one, or one for each expert), and the extremes."""

    mean: float
    low: float
    high: float

    @property
    def varies(self) -> bool:
        return self.high - self.low > 1e-6 * max(abs(self.high), abs(self.low))


@dataclass(frozen=True)
class Coefficients:
    """The effective coefficients of a model.

    Args:
        frame: Rows and columns.
        terms: Labels of sources, task vectors and methods, in order of first use.
        cells: For each cell of the frame, the terms that it has.
    """

    frame: Frame
    terms: tuple[str, ...]
    cells: Mapping[Cell, Mapping[str, Spread]]

    def of(self, term: str) -> dict[Cell, Spread]:
        """Return a term's value in every cell, 0 where a cell does not have it."""
        nothing = Spread(0.0, 0.0, 0.0)
        return {cell: terms.get(term, nothing) for cell, terms in self.cells.items()}


def coefficients(tensors: Mapping[str, Terms]) -> Coefficients:
    """Return the coefficients of a model from each tensor's terms.

    Args:
        tensors: Tensor name to rows of [label, coefficient].
    """
    frame = frame_of(tensors)
    grouped: dict[Cell, list[dict[str, float]]] = {}
    terms: dict[str, None] = {}
    for tensor, rows in tensors.items():
        values: dict[str, float] = {}
        for label, value in rows:
            values[label] = values.get(label, 0.0) + value
        terms |= dict.fromkeys(values)
        grouped.setdefault(frame.cells[tensor], []).append(values)
    cells = {
        cell: {
            term: _spread([values.get(term, 0.0) for values in group])
            for term in dict.fromkeys(t for values in group for t in values)
        }
        for cell, group in grouped.items()
    }
    return Coefficients(frame, tuple(terms), cells)


def terms_of(expression: ex.Expression) -> list[list[Any]]:
    """Return an expression's terms as [label, coefficient] rows.

    A method that is not a sum gives a row ``method(model)`` for each model with the weight that
    the recipe gives it (slerp: ``1 - t`` and ``t``), or one row if it has no weights.
    """
    return [[label, value] for label, value in _terms(expression, 1.0).items()]


def _terms(expression: ex.Expression, factor: float) -> dict[str, float]:
    match expression:
        case ex.Cast(operand, _):
            return _terms(operand, factor)
        case ex.Linear(terms):
            parts = [_terms(operand, factor * c) for c, operand in terms]
        case ex.Call():
            parts = [{label: factor * value} for label, value in _weights(expression)]
        case _:
            parts = [{ex.label(expression): factor}]
    total: dict[str, float] = {}
    for part in parts:
        for label, value in part.items():
            total[label] = total.get(label, 0.0) + value
    return total


def _weights(call: ex.Call) -> list[tuple[str, float]]:
    """Return the share that a method's own parameters give each input."""
    per_input, shared = dict(call.per_input), dict(call.parameters)
    values: list[float | None] = [None] * len(call.inputs)
    if "weight" in per_input:
        values = list(per_input["weight"])
    elif call.method == "slerp" and call.base is not None:
        values = [shared["t"]] * len(call.inputs)
        values[call.base] = 1 - shared["t"]
    names = [
        model if isinstance(operand, ex.Linear | ex.Call) and model else ex.label(operand)
        for operand, model in zip(call.inputs, call.models or ("",) * len(call.inputs), strict=True)
    ]
    found = [
        (f"{call.method}({name})", float(value))
        for name, value in zip(names, values, strict=True)
        if value is not None
    ]
    if found and call.base is not None and values[call.base] is None:
        found.insert(0, (names[call.base], 1.0))  # what is weighed is added to the base
    return found or [(ex.label(call), 1.0)]


def _spread(values: list[float]) -> Spread:
    return Spread(sum(values) / len(values), min(values), max(values))
