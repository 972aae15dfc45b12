"""Sums that a stage makes of many tensors alike: one is folded, all others follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.algebra.patterns import kind_of, note_alike
from shardmerge.methods.registry import LinearForm


class _First(NamedTuple):
    """The first sum of a kind, and its terms: coefficient and number of the input."""

    expression: ex.Linear
    terms: tuple[tuple[float, int], ...]


class RepeatedSums:
    """What was folded: by a method's coefficients and the kinds of the inputs' tensors."""

    def __init__(self) -> None:
        self._firsts: dict[tuple[Any, ...], _First] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._forms: dict[int, tuple[LinearForm, int]] = {}

    def expression(
        self,
        form: LinearForm,
        inputs: Sequence[ex.Expression],
        find: Callable[[], ex.Expression],
    ) -> ex.Expression:
        """Return a linear method's result over tensors of files.

        Args:
            form: The method's coefficients.
            inputs: The tensors, in the order of the form's indices.
            find: Folds the result.
        """
        sources = _sources(inputs)
        if form.deltas or sources is None:
            return find()
        key = (self._form(form), *[self._number(kind_of(tensor)) for tensor in inputs])
        first = self._firsts.get(key)
        if first is None:
            found = find()
            if isinstance(found, ex.Linear) and (terms := _terms(found, inputs)):
                self._firsts[key] = _First(found, terms)
            return found
        found = ex.Linear(tuple([(c, inputs[number]) for c, number in first.terms]))
        if len(first.terms) == len(inputs) and _ascend(first.terms):
            note_alike(found, first.expression, sources)
        return found

    def _number(self, key: tuple[Any, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _form(self, form: LinearForm) -> int:
        """Return a number for a form's coefficients: a stage asks for a form for each layer."""
        if id(form) not in self._forms:
            # as they are written: 1 and 1.0 are equal. The form is kept, so that none has its id
            key = tuple([(number, repr(c)) for number, c in form.direct.items()])
            self._forms[id(form)] = form, self._number(key)
        return self._forms[id(form)][1]


def _sources(inputs: Sequence[ex.Expression]) -> tuple[ex.Source, ...] | None:
    """Return the tensors that inputs are, or are decoded from; None if they are made otherwise.

    None too if one is named twice, as coefficients may cancel then.
    """
    found: list[ex.Source] = []
    for tensor in inputs:
        if type(tensor) is ex.Decoded:
            found += [source for _, source in tensor.parts]
        elif type(tensor) is ex.Source:
            found.append(tensor)
        else:
            return None
    return tuple(found) if len(set(found)) == len(found) else None


def _terms(found: ex.Linear, inputs: Sequence[ex.Expression]) -> tuple[tuple[float, int], ...]:
    numbers = {tensor: number for number, tensor in enumerate(inputs)}
    if not all(operand in numbers for _, operand in found.terms):
        return ()
    return tuple((c, numbers[operand]) for c, operand in found.terms)


def _ascend(terms: Sequence[tuple[float, int]]) -> bool:
    numbers = [number for _, number in terms]
    return numbers == sorted(numbers)
