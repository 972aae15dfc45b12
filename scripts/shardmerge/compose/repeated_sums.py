"""Sums that a stage makes of many tensors alike: one is folded, all others follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.algebra.patterns import Kind, note_alike
from shardmerge.methods.registry import LinearForm


class _First(NamedTuple):
    """The first sum of a kind.

    Args:
        expression: The sum.
        terms: Coefficient and number of the input, term by term.
        ascends: Whether all inputs are terms, in their order.
        distinct: Whether inputs are of different models, so that none can be another one too.
    """

    expression: ex.Linear
    terms: tuple[tuple[float, int], ...]
    ascends: bool
    distinct: bool


class RepeatedSums:
    """What was folded: by a method's coefficients and the kinds of the inputs' tensors."""

    def __init__(self) -> None:
        self._firsts: dict[tuple[Any, ...], _First] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._forms: dict[int, tuple[LinearForm, int]] = {}

    def expression(
        self,
        form: LinearForm,
        kinds: Sequence[Kind],
        inputs: Sequence[ex.Source | ex.Decoded],
        find: Callable[[], ex.Expression],
    ) -> ex.Expression:
        """Return a linear method's result over tensors of files.

        Args:
            form: The method's coefficients.
            kinds: Of the tensors.
            inputs: The tensors, in the order of the form's indices.
            find: Folds the result.
        """
        if form.deltas:
            return find()
        key = (self._form(form), *kinds)
        first = self._firsts.get(key)
        sources = _sources(inputs)
        # coefficients may cancel where one is named twice
        if not (first and first.distinct) and len(set(sources)) < len(sources):
            return find()
        if first is None:
            found = find()
            if isinstance(found, ex.Linear) and (terms := _terms(found, inputs)):
                self._firsts[key] = _first(found, terms, inputs)
            return found
        found = ex.Linear(tuple([(c, inputs[number]) for c, number in first.terms]))
        if first.ascends:
            note_alike(found, first.expression, sources)
        return found

    def _form(self, form: LinearForm) -> int:
        """Return a number for a form's coefficients: a stage asks for a form for each layer."""
        if id(form) not in self._forms:
            # as they are written: 1 and 1.0 are equal. The form is kept, so that none has its id
            key = tuple([(number, repr(c)) for number, c in form.direct.items()])
            self._forms[id(form)] = form, self._numbers.setdefault(key, len(self._numbers))
        return self._forms[id(form)][1]


def _sources(inputs: Sequence[ex.Source | ex.Decoded]) -> tuple[ex.Source, ...]:
    """Return the tensors that inputs are, or are decoded from."""
    found: list[ex.Source] = []
    for tensor in inputs:
        if type(tensor) is ex.Decoded:
            found += [source for _, source in tensor.parts]
        else:
            found.append(tensor)
    return tuple(found)


def _terms(found: ex.Linear, inputs: Sequence[ex.Expression]) -> tuple[tuple[float, int], ...]:
    numbers = {tensor: number for number, tensor in enumerate(inputs)}
    if not all(operand in numbers for _, operand in found.terms):
        return ()
    return tuple((c, numbers[operand]) for c, operand in found.terms)


def _first(
    found: ex.Linear,
    terms: tuple[tuple[float, int], ...],
    inputs: Sequence[ex.Source | ex.Decoded],
) -> _First:
    ascends = [number for _, number in terms] == list(range(len(inputs)))
    distinct = len({tensor.model for tensor in inputs}) == len(inputs)
    return _First(found, terms, ascends, distinct)
