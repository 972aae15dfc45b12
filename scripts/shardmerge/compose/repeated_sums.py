"""Sums that a stage makes of many tensors alike: one is folded, all others follow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shardmerge.algebra import expression as ex
from shardmerge.algebra.patterns import note_alike
from shardmerge.methods.registry import LinearForm

_OF_FILES = (ex.Source, ex.Decoded)


class _First(NamedTuple):
    """The first sum of a kind.

    Args:
        expression: The sum.
        terms: Coefficient and number of the input, term by term.
        stored: Whether inputs are tensors as they are stored.
        ascends: Whether all inputs are terms, in their order.
        distinct: Whether inputs are of different models, so that none can be another one too.
    """

    expression: ex.Linear
    terms: tuple[tuple[float, int], ...]
    stored: bool
    ascends: bool
    distinct: bool


class RepeatedSums:
    """What was folded: by a method's coefficients and the kinds of the inputs' tensors."""

    def __init__(self) -> None:
        self._firsts: dict[Any, _First] = {}

    def like(self, key: Any, inputs: tuple[ex.Source | ex.Decoded, ...]) -> ex.Linear | None:
        """Return a sum of tensors of files that is made as one that is known.

        Args:
            key: The method's coefficients (``coefficients_of``), and the kinds of the tensors.
            inputs: The tensors, in the order of the coefficients' numbers.

        Returns:
            None if none is known, or a stored tensor is named twice, so that coefficients may
            cancel.
        """
        first = self._firsts.get(key)
        if first is None:
            return None
        sources = inputs if first.stored else _sources(inputs)
        if not first.distinct and len(set(sources)) < len(sources):
            return None
        found = ex.Linear(tuple([(c, inputs[number]) for c, number in first.terms]))
        if first.ascends:
            note_alike(found, first.expression, sources)
        return found

    def note(
        self, key: Any, inputs: Sequence[ex.Source | ex.Decoded], found: ex.Expression
    ) -> None:
        """Note a sum that was folded, unless one like it is known; arguments as of ``like``."""
        if key in self._firsts or not all(type(one) in _OF_FILES for one in inputs):
            return
        sources = _sources(inputs)
        if len(set(sources)) < len(sources):
            return
        if isinstance(found, ex.Linear) and (terms := _terms(found, inputs)):
            stored = all(type(one) is ex.Source for one in inputs)
            ascends = [number for _, number in terms] == list(range(len(inputs)))
            distinct = len({tensor.model for tensor in inputs}) == len(inputs)
            self._firsts[key] = _First(found, terms, stored, ascends, distinct)


def coefficients_of(form: LinearForm) -> str:
    """Return a form's coefficients as they are written, "" if it has task vectors."""
    return "" if form.deltas else repr(list(form.direct.items()))


def _sources(inputs: Sequence[ex.Source | ex.Decoded]) -> tuple[ex.Source, ...]:
    """Return the tensors that inputs are, or are decoded from."""
    if all(type(tensor) is ex.Source for tensor in inputs):
        return tuple(inputs)
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
