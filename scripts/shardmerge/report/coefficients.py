"""What every layer and module is made of: coefficients of sources and task vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shardmerge.algebra.call_terms import setting_of
from shardmerge.algebra.coefficients import NOTHING
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

    @property
    def parts(self) -> tuple[str, ...]:
        """The terms worth a picture: no zero tensors, and of parameters those whose value is not
        one for all tensors and models.
        """
        return tuple(term for term in self.terms if self._is_shown(term)) or self.terms

    def _is_shown(self, term: str) -> bool:
        setting = setting_of(term)
        return term != NOTHING if setting is None else self._of_all[setting[:3]].varies

    @cached_property
    def _of_all(self) -> Mapping[tuple[str, str, str], Spread]:
        """Lowest and highest value of each parameter, whatever the tensor and the model."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for term in self.terms:
            if setting := setting_of(term):
                values = found.setdefault(setting[:3], [])
                spreads = [terms[term] for terms in self.cells.values() if term in terms]
                values += [v for spread in spreads for v in (spread.low, spread.high)]
        return {key: _spread(values) for key, values in found.items()}

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
            values[label] = value if setting_of(label) else values.get(label, 0.0) + value
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


def _spread(values: list[float]) -> Spread:
    return Spread(sum(values) / len(values), min(values), max(values))
