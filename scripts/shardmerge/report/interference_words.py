"""What the statistics of a model mean, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from shardmerge.base.text import plural, ranges
from shardmerge.report.frame import Cell
from shardmerge.report.interference import COSINE, DISTANCE, KEPT, SIGNS, Interference, Observation

#: Below this cosine two task vectors take away from each other what can be noticed.
_OPPOSITE = -0.1
#: Below this share next to nothing is left of a task vector.
_LITTLE = 0.01
#: Standard errors that a value must be beyond a limit.
_SURE = 3
#: Warnings of a kind; the rest is counted.
_MOST = 5


def warnings(found: Interference) -> list[str]:
    """Return a sentence for each pair that works against itself, and for what is hardly kept."""
    names = found.pair_names()
    lines = [
        f"{' and '.join(names[pair])} point in opposite directions in {where}: cosine {value}."
        for pair, cells in found.of(COSINE).items()
        for where, value in _places(cells, _is_opposite, min)
    ]
    kept = [
        f"Less than 1 % of {found.short(labels[0])} is kept in {where}."
        for labels, cells in found.of(KEPT).items()
        for where, _ in _places(cells, _is_little, min)
    ]
    return [*_first(lines), *_first(kept)]


def facts(found: Interference) -> list[tuple[str, str, str]]:
    """Return rows of what was measured, what of, and its least and greatest values by layer."""
    kinds = {
        COSINE: "cosine similarity of task vectors",
        SIGNS: "elements of one sign",
        DISTANCE: "distance to a parent",
        KEPT: "share kept",
    }
    names = found.pair_names()
    rows = []
    for measure, title in kinds.items():
        for labels, layers in found.by_layer(measure).items():
            whole = labels if labels in names else labels[:1]
            of = " and ".join(map(found.short, whole))
            values = [row.value for row in layers.values()]
            rows.append((title, of, _span(min(values), max(values))))
    return rows


def _places(
    cells: Mapping[Cell, Observation],
    matters: Callable[[Observation], bool],
    worst: Callable[[Sequence[float]], float],
) -> Iterator[tuple[str, str]]:
    """Yield where rows matter, module by module, with the worst value there."""
    modules: dict[str, list[Observation]] = {}
    for (module, _), row in cells.items():
        if matters(row):
            modules.setdefault(module, []).append(row)
    for module, rows in modules.items():
        layers = [row.layer for row in rows if row.layer is not None]
        word = "layer" if len(layers) == 1 else "layers"
        where = f"{word} {ranges(layers)}, {module}" if layers else module
        value = f"{worst([row.value for row in rows]):.2f}"
        yield where, f"down to {value}" if len(rows) > 1 else value


def _is_opposite(row: Observation) -> bool:
    return row.value + _SURE * row.error < _OPPOSITE


def _is_little(row: Observation) -> bool:
    return row.value + _SURE * row.error < _LITTLE


def _first(lines: Sequence[str]) -> list[str]:
    left = len(lines) - _MOST
    more = [f"{plural(left, 'more place')} like this: interference.csv has all."]
    return [*lines[:_MOST], *(more if left > 0 else [])]


def _span(low: float, high: float) -> str:
    low_text, high_text = f"{low:.3g}", f"{high:.3g}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"
