"""A recipe is algebra: what an output tensor is, as an expression over source tensors.

Expressions are immutable, hashable and JSON-able (``algebra.json``). They say what is computed,
never where the bytes lie or how they are streamed; that is the engine's part. Their kinds of node
are in ``nodes``; here is what is asked of whole expressions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from shardmerge.algebra import rows
from shardmerge.algebra.nodes import (
    Arranged,
    Call,
    Cast,
    Choice,
    Decoded,
    Delta,
    Expression,
    Linear,
    LowRank,
    Mean,
    Rows,
    RowSums,
    Source,
    Zero,
    noted,
    operands,
)

__all__ = [
    "Arranged",
    "Call",
    "Cast",
    "Choice",
    "Decoded",
    "Delta",
    "Expression",
    "Linear",
    "LowRank",
    "Mean",
    "RowSums",
    "Rows",
    "Source",
    "Zero",
    "deltas",
    "elements",
    "label",
    "operands",
    "sources",
    "take_rows",
    "tensors",
    "walk",
]

_OF_FILES = (Source, Decoded, Arranged)


def walk(
    expression: Expression, until: Callable[[Expression], bool] | None = None
) -> Iterator[Expression]:
    """Yield the expression and all that it is made of, depth first, in order, with repeats.

    Args:
        expression: Where to begin.
        until: True of those parts whose operands are left out; by default of none.
    """
    if isinstance(expression, Source):
        return iter((expression,))
    if until is None:
        return iter(noted(expression, "_parts", _parts))
    return _walk(expression, until)


def _parts(expression: Expression) -> tuple[Expression, ...]:
    return tuple(_walk(expression, lambda node: isinstance(node, Source)))


def _walk(expression: Expression, until: Callable[[Expression], bool]) -> Iterator[Expression]:
    left = [expression]
    while left:
        node = left.pop()
        yield node
        if not until(node):
            left.extend(reversed(operands(node)))


def take_rows(expression: Expression, table: str) -> Expression:
    """Return the rows of an expression that a table names.

    All that is computed element by element commutes with it, so rows are taken from what is read.
    """
    if table == rows.all_rows(expression.shape[0]):
        return expression
    match expression:
        case Delta(finetuned, base, dtype):
            return Delta(take_rows(finetuned, table), take_rows(base, table), dtype)
        case Linear(terms):
            return Linear(tuple((c, take_rows(operand, table)) for c, operand in terms))
        case Cast(operand, dtype):
            return Cast(take_rows(operand, table), dtype)
        case Rows(operand, inner):
            return take_rows(operand, rows.take(inner, table))
        case Zero(shape):
            return Zero((rows.row_count(table), *shape[1:]))
        case Choice(found, inner):
            chosen = tuple(take_rows(operand, table) for operand in found)
            return Choice(chosen, rows.take_choice(inner, table))
    return Rows(expression, table)


def sources(expression: Expression) -> tuple[Source, ...]:
    """Return the distinct source tensors of an expression in order of first use."""
    if isinstance(expression, Source):
        return (expression,)
    return noted(expression, "_sources", _sources)


def _sources(expression: Expression) -> tuple[Source, ...]:
    found: dict[Source, None] = {}
    left = [expression]
    while left:
        node = left.pop()
        if type(node) is Source:
            found[node] = None
        elif type(node) is Decoded:
            for _, source in node.parts:
                found[source] = None
        else:
            left.extend(reversed(operands(node)))
    return tuple(found)


def tensors(expression: Expression) -> tuple[Source | Decoded, ...]:
    """Return the tensors that an expression is made of, in order, with repeats."""
    if isinstance(expression, Source | Decoded):
        return (expression,)
    return noted(expression, "_tensors", _tensors)


def _tensors(expression: Expression) -> tuple[Source | Decoded, ...]:
    found: list[Source | Decoded] = []
    left = [expression]
    while left:
        node = left.pop()
        if isinstance(node, (Source, Decoded)):
            found.append(node)
        else:
            left.extend(reversed(operands(node)))
    return tuple(found)


def deltas(expression: Expression) -> tuple[Delta, ...]:
    """Return the distinct task vectors of an expression in order of first use."""
    return () if isinstance(expression, Source) else noted(expression, "_deltas", _deltas)


def _deltas(expression: Expression) -> tuple[Delta, ...]:
    found: dict[Delta, None] = {}
    left = [expression]
    while left:
        node = left.pop()
        if not isinstance(node, _OF_FILES):
            if type(node) is Delta:
                found[node] = None
            left.extend(reversed(operands(node)))
    return tuple(found)


def elements(expression: Expression) -> int:
    """Return the number of elements of an expression's result."""
    return math.prod(expression.shape)


def label(expression: Expression) -> str:
    """Return a name for an expression: a model, a difference of models, a method's call."""
    match expression:
        case Source() | Decoded() | Arranged():
            return expression.model
        case Rows(operand) | Mean(operand) | RowSums(operand):
            return label(operand)
        case Choice(found):
            return label(found[0])
        case Delta(finetuned, base, _):
            return f"{label(finetuned)} - {label(base)}"
        case LowRank():
            return expression.a.model
        case Cast(operand, _):
            return label(operand)
        case Call(method=method, models=models):
            return f"{method}({', '.join(models)})"
        case Zero():
            return "0"
    return "sum"
