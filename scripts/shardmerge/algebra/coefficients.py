"""What an expression is made of, in names and numbers: for cards, reports and checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.call_terms import call_label, setting_of, setting_rows
from shardmerge.algebra.patterns import ADDED_BIAS, alike

#: Label of a tensor that is zero everywhere.
NOTHING = ex.label(ex.Zero(()))


@dataclass(frozen=True)
class Blend:
    """The models in an expression.

    Args:
        coefficients: Of each model that is added, by its key; a task vector counts with its
            coefficient for the fine-tuned model and with the opposite for the base.
        through: Models that go through a method that is not a sum.
    """

    coefficients: Mapping[str, float]
    through: tuple[str, ...]

    @cached_property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.coefficients, *self.through)))


def terms_of(expression: ex.Expression) -> list[list[Any]]:
    """Return an expression's terms as [label, coefficient] rows.

    A method that is not a sum gives a row ``method(base, models)`` with its coefficient, and rows
    of its parameters, whose labels ``call_terms.setting_of`` tells from terms.
    """
    return [[label, value] for label, value in _terms(expression, 1.0).items()]


def blend_of(expression: ex.Expression) -> Blend:
    """Return the models that an expression takes something of."""
    coefficients: dict[str, float] = {}
    through: dict[str, None] = {}

    def visit(node: ex.Expression, factor: float | None) -> None:
        match node:
            case ex.Source(tensor=tensor) if tensor.endswith(ADDED_BIAS):
                pass
            case ex.Source() | ex.Decoded() | ex.Arranged():
                model = node.model
                if factor is None:
                    through[model] = None
                else:
                    coefficients[model] = coefficients.get(model, 0.0) + factor
            case ex.Delta(finetuned, base, _):
                visit(finetuned, factor)
                visit(base, None if factor is None else -factor)
            case ex.LowRank():
                pass  # an adapter is no model of its own
            case ex.Linear(terms):
                for c, operand in terms:
                    visit(operand, None if factor is None else factor * c)
            case ex.Cast() | ex.Rows() | ex.RowSums():
                visit(node.operand, factor)
            case ex.Choice(found) if shares := _shares(node):
                for operand, share in zip(found, shares, strict=True):
                    visit(operand, None if factor is None else factor * share)
            case ex.Call():
                weights = dict(node.per_input).get("weight", (None,) * len(node.inputs))
                for i, operand in enumerate(node.inputs):
                    if weights[i] != 0 or i == node.base:
                        visit(operand, None)
            case _:
                for operand in ex.operands(node):
                    visit(operand, None)

    visit(expression, 1.0)
    # What rounding leaves of a coefficient that cancels is nothing.
    kept = {model: c for model, c in coefficients.items() if abs(c) > 1e-6}
    return Blend(kept, tuple(through))


def decoded_of(expressions: Iterable[ex.Expression]) -> dict[str, dict[str, int]]:
    """Return how many quantised weights of each model are read, by format; sorted."""
    leads: dict[tuple[str, str], set[ex.Source]] = {}
    for expression in expressions:
        if places := alike(expression, _decoded_places):
            sources = ex.sources(expression)
            for place, kind in places:
                leads.setdefault(kind, set()).add(sources[place])
    found: dict[str, dict[str, int]] = {}
    for (model, form), own in sorted(leads.items()):
        found.setdefault(model, {})[form] = len(own)
    return found


def _decoded_places(expression: ex.Expression) -> list[tuple[int, tuple[str, str]]]:
    """Return which of an expression's sources lead what is decoded, with its model and format."""
    number = {source: place for place, source in enumerate(ex.sources(expression))}
    return [
        (number[one.lead], (one.model, one.format))
        for one in dict.fromkeys(ex.tensors(expression))
        if isinstance(one, ex.Decoded)
    ]


def _shares(choice: ex.Choice) -> list[float]:
    """Return how much of a tensor each operand of a choice makes, if these are sums."""
    if not any(isinstance(one, ex.Linear) for one in choice.operands):
        return []
    return rows.shares(choice.table, len(choice.operands))


def _terms(expression: ex.Expression, factor: float) -> dict[str, float]:
    match expression:
        case ex.Cast(operand, _):
            return _terms(operand, factor)
        case ex.Linear(terms):
            parts = [_terms(operand, factor * c) for c, operand in terms]
        case ex.Choice(found) if shares := _shares(expression):
            parts = [_terms(one, factor * n) for one, n in zip(found, shares, strict=True)]
        case ex.Rows(operand) if isinstance(operand, ex.Call):
            return _terms(operand, factor)
        case ex.Call():
            parts = [{call_label(expression): factor}, dict(setting_rows(expression))]
        case _:
            parts = [{ex.label(expression): factor}]
    total: dict[str, float] = {}
    for part in parts:
        for label, value in part.items():
            total[label] = value if setting_of(label) else total.get(label, 0.0) + value
    return total
