"""What of a merged tensor can be compared: its task vectors, and the tensor with its parents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shardmerge.algebra import expression as ex
from shardmerge.algebra.call_terms import declared, input_names
from shardmerge.algebra.patterns import alike, one_of_each
from shardmerge.methods.registry import method

#: Statistics that not every model has.
PAIRS, KEPT = "pairs", "kept"


@dataclass(frozen=True)
class Vector:
    """A task vector, or a source where a tensor has no task vectors.

    Args:
        value: What it is.
        base: What is subtracted from it, if it is not a difference yet.
    """

    value: ex.Expression
    base: ex.Expression | None = None


@dataclass(frozen=True)
class Sparse:
    """A call of a merge method, and the labels of its inputs' task vectors in their order."""

    call: ex.Call
    labels: tuple[str | None, ...]


@dataclass
class Comparable:
    """What of one output tensor can be compared, by labels of models and differences of models.

    Args:
        vectors: Its task vectors; the sources where it has none.
        parents: The models that it is made from: terms whose sum is the model's tensor.
        calls: Merge methods that are no sums.
    """

    vectors: dict[str, Vector] = field(default_factory=dict)
    parents: dict[str, tuple[ex.Expression, ...]] = field(default_factory=dict)
    calls: list[Sparse] = field(default_factory=list)


def comparable(expression: ex.Expression) -> Comparable:
    """Return what can be compared of an output tensor.

    A task vector counts as one thing, whether it is stored or computed in passing, so that the
    answer is the same for both. What a merge method makes for another one is left out: it would
    have to be computed anew.
    """
    found = Comparable()
    deltas: dict[ex.Delta, None] = {}
    _visit(expression, expression.shape, found, deltas)
    bases = {value for terms in found.parents.values() for value in terms}
    for delta in deltas:
        found.vectors.setdefault(ex.label(delta), Vector(delta))
        if delta.base in bases and _is_model(delta.finetuned):
            found.parents.setdefault(ex.label(delta.finetuned), (delta.base, delta))
    if not found.vectors:
        found.vectors = {
            label: Vector(terms[0]) for label, terms in found.parents.items() if len(terms) == 1
        }
    return found


def worth_showing(expressions: Iterable[ex.Expression]) -> tuple[str, ...]:
    """Return which statistics there are of a model: of pairs of task vectors, of what is kept."""
    found: set[str] = set()
    for expression in one_of_each(expressions):
        if isinstance(expression, ex.Source):
            continue
        found |= alike(expression, _shown)
        if len(found) == 2:
            break
    return tuple(sorted(found))


def _shown(expression: ex.Expression) -> frozenset[str]:
    one = comparable(expression)
    kept = any(method(sparse.call.method).kept for sparse in one.calls)
    return frozenset(([PAIRS] if len(one.vectors) > 1 else []) + ([KEPT] if kept else []))


def _visit(
    node: ex.Expression,
    shape: tuple[int, ...],
    found: Comparable,
    deltas: dict[ex.Delta, None],
) -> None:
    if node.shape != shape:
        return
    match node:
        case ex.Delta():
            deltas[node] = None
        case ex.LowRank():
            found.vectors.setdefault(ex.label(node), Vector(node))
        case ex.Source() | ex.Decoded() | ex.Arranged():
            found.parents.setdefault(ex.label(node), (node,))
        case ex.Rows(operand):
            if _is_model(operand):
                found.parents.setdefault(ex.label(node), (node,))
        case ex.Call():
            _visit_call(node, found, deltas)
        case ex.Linear() | ex.Cast() | ex.Choice():
            for operand in ex.operands(node):
                _visit(operand, shape, found, deltas)


def _visit_call(call: ex.Call, found: Comparable, deltas: dict[ex.Delta, None]) -> None:
    if not declared(call.method):
        return
    if any(isinstance(part, ex.Call) for one in call.inputs for part in ex.walk(one)):
        for operand in call.inputs:
            _visit(operand, call.shape, found, deltas)
        return
    if any(one.shape != call.shape for one in call.inputs):
        return
    names = input_names(call)
    for name, operand in zip(names, call.inputs, strict=True):
        found.parents.setdefault(name, (operand,))
    if call.base is None:
        return
    base = call.inputs[call.base]
    labels: list[str | None] = []
    for i, (name, operand) in enumerate(zip(names, call.inputs, strict=True)):
        labels.append(None if i == call.base else f"{name} - {names[call.base]}")
        if labels[i] is not None:
            found.vectors.setdefault(labels[i], Vector(operand, base))
    found.calls.append(Sparse(call, tuple(labels)))


def _is_model(expression: ex.Expression) -> bool:
    """Whether an expression is a tensor of one model, or rows of it."""
    if isinstance(expression, ex.Rows):
        expression = expression.operand
    return isinstance(expression, ex.Source | ex.Decoded | ex.Arranged)
