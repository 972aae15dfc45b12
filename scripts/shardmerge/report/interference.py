"""How a model's task vectors agree, how far it is from its parents, what sparse methods keep."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shardmerge.base import forms
from shardmerge.base.forms import entry
from shardmerge.plan.statistics import ShardStatistics, TensorStatistics
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.report.frame import Cell, Frame

#: What is measured, in the order of the table.
COSINE, SIGNS, DISTANCE, KEPT = MEASURES = ("cosine", "sign_agreement", "distance", "kept")
#: Stands for all modules of a layer.
ALL = "(all)"
_MINUS = " - "


class Observation(NamedTuple):
    """A value of the table.

    Args:
        measure: One of MEASURES.
        first: Label of a task vector or of a model.
        second: Label of the other of a pair, else empty.
        module: A row of the model's frame, or ALL.
        layer: None outside layers.
        value, error: The value and its standard error.
    """

    measure: str
    first: str
    second: str
    module: str
    layer: int | None
    value: float
    error: float


@dataclass(frozen=True)
class Interference:
    """What was measured of a model.

    Args:
        name: Of the model.
        sources: References that people are shown by short names.
        modules, outside, layers, experts: Of the model's frame.
        sampled, elements: How many elements were looked at, and of how many.
        rows: All values.
    """

    name: str = entry(forms.text)
    sources: tuple[str, ...] = entry(forms.listed(forms.text))
    modules: tuple[str, ...] = entry(forms.listed(forms.text))
    outside: tuple[str, ...] = entry(forms.listed(forms.text))
    layers: int = entry(forms.count)
    experts: int = entry(forms.count)
    sampled: int = entry(forms.count)
    elements: int = entry(forms.count)
    rows: tuple[Observation, ...] = entry(
        forms.listed(
            lambda value: Observation(
                *forms.row(
                    forms.one_of(lambda: MEASURES),
                    *[forms.text] * 3,
                    forms.maybe(forms.count),
                    *[forms.number] * 2,
                )(value)
            )
        )
    )

    @property
    def frame(self) -> Frame:
        """The model's frame, without its tensors."""
        return Frame(self.modules, self.outside, self.layers, self.experts, {})

    def of(self, measure: str) -> dict[tuple[str, str], dict[Cell, Observation]]:
        """Return a measure's rows of single modules: both labels to cell to row."""
        found: dict[tuple[str, str], dict[Cell, Observation]] = {}
        for row in self.rows:
            if row.measure == measure and row.module != ALL:
                found.setdefault(row[1:3], {})[row.module, row.layer] = row
        return found

    def by_layer(self, measure: str) -> dict[tuple[str, str], dict[int | None, Observation]]:
        """Return a measure's rows of whole layers: both labels to layer to row."""
        found: dict[tuple[str, str], dict[int | None, Observation]] = {}
        for row in self.rows:
            if row.measure == measure and row.module == ALL:
                found.setdefault(row[1:3], {})[row.layer] = row
        return found

    def short(self, label: str) -> str:
        """Return a label with the short names of the sources in it."""
        return shortener(short_names(self.sources))(label)

    def pair_names(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Return the names of each pair, without the base where all have the same."""
        base = self._base
        return {
            pair: tuple(self.short(label).removesuffix(base) for label in pair)
            for pair in self.of(COSINE)
        }

    def common_base(self) -> str:
        """Return a sentence that names the base of all task vectors, if they have one."""
        name = self._base.removeprefix(_MINUS)
        return f" Each model minus {name}." if name else ""

    @property
    def _base(self) -> str:
        labels = [self.short(label) for pair in self.of(COSINE) for label in pair]
        ends = {_MINUS + label.rpartition(_MINUS)[2] for label in labels if _MINUS in label}
        return ends.pop() if len(ends) == 1 and all(_MINUS in label for label in labels) else ""


def collect(
    name: str, sources: Sequence[str], frame: Frame, shards: Iterable[ShardStatistics]
) -> Interference:
    """Return what was measured of a model, added up to layers and modules.

    Args:
        name: Of the model.
        sources: References of its sources.
        frame: Its rows and columns.
        shards: Statistics of its shards.
    """
    parts: dict[tuple[str, str, str, str, int | None], list[_Part]] = {}
    sampled = elements = 0
    for shard in shards:
        for tensor, found in shard.tensors.items():
            sampled, elements = sampled + found.sampled, elements + found.elements
            module, layer = frame.cells[tensor]
            for measure, first, second, part in _parts(found, shard.labels):
                for row in (module, ALL):
                    key = (measure, first, second, row, layer)
                    parts.setdefault(key, []).append(part)
    values = (
        Observation(*key, *map(_short, value))
        for key, group in parts.items()
        if (value := _VALUES[key[0]](group)) is not None
    )
    order = {m: i for i, m in enumerate((*frame.outside, *frame.modules, ALL))}
    labels = {pair: i for i, pair in enumerate(dict.fromkeys(key[1:3] for key in parts))}
    rows = sorted(
        values,
        key=lambda row: (
            MEASURES.index(row.measure),
            labels[row[1:3]],
            -1 if row.layer is None else row.layer,
            order[row.module],
        ),
    )
    return Interference(
        name=name,
        sources=tuple(sources),
        modules=frame.modules,
        outside=frame.outside,
        layers=frame.layers,
        experts=frame.experts,
        sampled=sampled,
        elements=elements,
        rows=tuple(rows),
    )


def load_interference(path: str | os.PathLike[str]) -> Interference:
    """Return what was measured of a model, as ``forms.written`` wrote it.

    Raises:
        UserError: If it cannot be read or is damaged.
    """
    return forms.read_file(Interference, path)


def interference_csv(found: Interference) -> str:
    """Return the table as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["measure", "first", "second", "module", "layer", "value", "standard_error"])
    writer.writerows(found.rows)
    return text.getvalue()


class _Part(NamedTuple):
    """A tensor's share of a value: sums over the whole tensor, as estimated, and their error.

    Args:
        sums: The numerator, and what it is divided by.
        size: How many sampled elements the denominator has.
        error: Standard error of the tensor's own value; of counts it follows from ``size``.
        whole: Whether all elements were looked at.
    """

    sums: tuple[float, ...]
    size: int
    error: float
    whole: bool


def _parts(found: TensorStatistics, labels: Sequence[str]) -> Iterator[tuple[str, str, str, _Part]]:
    k, whole = found.factor, found.sampled == found.elements
    for a, b, dot, one, other, agree, both, error in found.pairs:
        pair = labels[a], labels[b]
        yield COSINE, *pair, _Part((k * dot, k * one, k * other), 0, error, whole)
        yield SIGNS, *pair, _Part((k * agree, k * both), both, 0.0, whole)
    for label, distance, square, error in found.parents:
        yield DISTANCE, labels[label], "", _Part((k * distance, k * square), 0, error, whole)
    for label, kept, changed in found.kept:
        yield KEPT, labels[label], "", _Part((k * kept, k * changed), changed, 0.0, whole)


def _cosine(parts: Sequence[_Part]) -> tuple[float, float] | None:
    dot, one, other = _sums(parts)
    length = math.sqrt(one) * math.sqrt(other)
    if not length:
        return None
    shares = ((math.sqrt(p.sums[1]) * math.sqrt(p.sums[2]) / length, p.error) for p in parts)
    return max(-1.0, min(1.0, dot / length)), math.hypot(*(s * e for s, e in shares))


def _distance(parts: Sequence[_Part]) -> tuple[float, float] | None:
    distance, square = _sums(parts)
    if not square:
        return None
    value = math.sqrt(distance / square)
    if not value:
        return 0.0, 0.0
    errors = (math.sqrt(p.sums[0] * p.sums[1]) / square * p.error for p in parts)
    return value, math.hypot(*errors) / value


def _share(parts: Sequence[_Part]) -> tuple[float, float] | None:
    """Return a share of elements, with the error of a sample of single elements."""
    some, every = _sums(parts)
    if not every:
        return None
    share = some / every
    spread = math.sqrt(max(share * (1 - share), 0.0))
    sampled = (p for p in parts if p.size and not p.whole)
    return share, spread * math.hypot(*(p.sums[1] / every / math.sqrt(p.size) for p in sampled))


_VALUES: Mapping[str, Callable[[Sequence[_Part]], tuple[float, float] | None]] = {
    COSINE: _cosine,
    SIGNS: _share,
    DISTANCE: _distance,
    KEPT: _share,
}


def _sums(parts: Sequence[_Part]) -> list[float]:
    return [math.fsum(column) for column in zip(*(p.sums for p in parts), strict=True)]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
