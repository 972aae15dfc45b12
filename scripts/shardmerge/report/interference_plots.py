"""Plots of interference: task vectors with each other, the model with its parents, what is kept."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from shardmerge.base.text import plural
from shardmerge.report.canvas import BLUE, FAINT, GREEN, GREY, ORANGE, SKY, WIDTH, figure, message
from shardmerge.report.coefficients import Spread
from shardmerge.report.frame import Cell
from shardmerge.report.heatmap import Scale, draw_heatmap
from shardmerge.report.interference import (
    ALL,
    COSINE,
    DISTANCE,
    KEPT,
    SIGNS,
    Interference,
    Observation,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: If there are more pairs, or more task vectors, only the most telling are shown.
_MOST = 9
#: Half of a colour scale at least, so that chance does not look like much.
_SMALLEST_REACH = 0.1
#: Lines of a plot that can be told apart.
_COLOURS = (BLUE, ORANGE, GREEN, SKY, GREY, "#D55E00", "#CC79A7", "#000000")
_LINES = ("-", "--", ":")
#: Inches.
_TOP, _BOTTOM, _LEFT, _RIGHT, _LINE, _PLOT = 0.75, 0.5, 0.7, 3.2, 0.18, 3.4
#: Letters of a panel's title, by the number of panels that stand side by side.
_TITLE = {1: 80, 2: 48, 3: 32}
#: Letters of a label beside the lines.
_LETTERS = 34

_NO_PAIRS = "No tensor of this model is made of two task vectors, or of two sources."
_NO_PARENTS = "The checks of this model's shards measured no distances."
_NOTHING_KEPT = "No merge method of this model leaves elements of a task vector out."

Labels = tuple[str, str]


def draw_directions(found: Interference, output: str | os.PathLike[str]) -> None:
    """Draw the cosine similarity of each pair of task vectors.

    Args:
        found: What was measured.
        output: The file to write.
    """
    title = f"{found.name}: how the directions of its task vectors agree"
    values = [abs(row.value) for row in found.rows if row.measure == COSINE and row.module != ALL]
    reach = max(_SMALLEST_REACH, *values, 0.0)
    scale = Scale("RdBu", "cosine similarity", -reach, reach, zero=True)
    _draw_pairs(found, COSINE, title, scale, output)


def draw_signs(found: Interference, output: str | os.PathLike[str]) -> None:
    """Draw how often the signs of two task vectors agree; arguments as above."""
    title = f"{found.name}: how the signs of its task vectors agree"
    rows = [row for row in found.rows if row.measure == SIGNS and row.module != ALL]
    half = max(_SMALLEST_REACH / 2, *(abs(row.value - 0.5) for row in rows), 0.0)
    scale = Scale("coolwarm_r", "sign agreement", 0.5 - half, 0.5 + half, zero=True)
    _draw_pairs(found, SIGNS, title, scale, output)


def _draw_pairs(
    found: Interference,
    measure: str,
    title: str,
    scale: Scale,
    output: str | os.PathLike[str],
) -> None:
    pairs = found.of(measure)
    if not pairs:
        message(output, title, _NO_PAIRS)
        return
    # the same pairs for both measures
    shown = [pair for pair in _most(found.of(COSINE), lambda row: abs(row.value)) if pair in pairs]
    names = _fitting({pair: found.pair_names()[pair] for pair in shown})
    panels = {names[pair]: _spreads(pairs[pair]) for pair in shown}
    note = _note(len(shown), len(pairs), "pair") + found.common_base() + _sampled(found, measure)
    draw_heatmap(output, title, note, found.frame, panels, scale)


def draw_kept(found: Interference, output: str | os.PathLike[str]) -> None:
    """Draw which share of each task vector sparse methods keep; arguments as above."""
    title = f"{found.name}: share of each task vector that is kept"
    kept = {labels: cells for labels, cells in found.of(KEPT).items() if cells}
    if not kept:
        message(output, title, _NOTHING_KEPT)
        return
    shown = _most(kept, lambda row: 1 - row.value)
    names = _fitting({labels: (found.short(labels[0]),) for labels in shown})
    panels = {names[labels]: _spreads(kept[labels]) for labels in shown}
    note = _note(len(shown), len(kept), "task vector") + _sampled(found, KEPT)
    scale = Scale("viridis_r", "share kept", 0.0, 1.0, zero=True)
    draw_heatmap(output, title, note, found.frame, panels, scale)


def draw_distances(found: Interference, output: str | os.PathLike[str]) -> None:
    """Draw how far the model is from each parent, layer by layer; arguments as above."""
    title = f"{found.name}: how far it is from each parent"
    lines = found.by_layer(DISTANCE)
    if not lines:
        message(output, title, _NO_PARENTS)
        return
    height = _TOP + max(_PLOT, _LINE * 2 * len(lines)) + _BOTTOM
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = "Norm of the difference over the norm of the parent." + _sampled(found, DISTANCE)
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        axes = drawing.add_axes(
            (
                _LEFT / WIDTH,
                _BOTTOM / height,
                1 - (_LEFT + _RIGHT) / WIDTH,
                1 - (_TOP + _BOTTOM) / height,
            )
        )
        _draw_lines(axes, found, {labels[0]: rows for labels, rows in lines.items()})


def _draw_lines(
    axes: Axes, found: Interference, lines: Mapping[str, Mapping[int | None, Observation]]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, (label, rows) in enumerate(lines.items()):
        layers = range(found.layers)
        values = [rows[n].value if n in rows else float("nan") for n in layers]
        name = found.short(label)
        if None in rows:
            name += f"  (outside layers {rows[None].value:.3g})"
        axes.plot(
            layers,
            values,
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_LINES[number // len(_COLOURS) % len(_LINES)],
            marker="o",
            markersize=3,
            linewidth=1.4,
            label=_wrapped(name),
        )
    axes.set_xlim(-0.3, max(found.layers - 0.7, 0.3))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("relative distance")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#E6E8EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=8)


def _wrapped(text: str) -> str:
    """Return a label in lines that fit beside the plot."""
    return "\n".join(textwrap.wrap(text, _LETTERS)[:3])


def _most(
    found: Mapping[Labels, Mapping[Cell, Observation]], telling: Callable[[Observation], float]
) -> list[Labels]:
    """Return the labels whose rows tell most, in their order."""
    if len(found) <= _MOST:
        return list(found)
    ranked = sorted(found, key=lambda labels: -max(map(telling, found[labels].values())))
    return [labels for labels in found if labels in ranked[:_MOST]]


def _note(shown: int, every: int, what: str) -> str:
    if shown == every:
        return "White: not in this model."
    return f"The {shown} of {plural(every, what)} that tell most; interference.csv has all."


def _sampled(found: Interference, measure: str) -> str:
    """Return how sure the values of a plot are."""
    error = max((row.error for row in found.rows if row.measure == measure), default=0.0)
    return f" From a sample: standard errors up to {error:.2g}." if error else " From all elements."


def _fitting(names: Mapping[Labels, Sequence[str]]) -> dict[Labels, str]:
    """Return the panels' titles, each name cut in its middle where several stand side by side."""
    most = _TITLE[min(len(names), 3)]
    cut = {k: " | ".join(_cut(name, most // len(row)) for name in row) for k, row in names.items()}
    if len(set(cut.values())) == len(cut):
        return cut
    return {labels: " | ".join(row) for labels, row in names.items()}


def _cut(name: str, most: int) -> str:
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[:half]}...{name[-half:]}"


def _spreads(rows: Mapping[Cell, Observation]) -> dict[Cell, Spread]:
    values = {cell: round(row.value, 3) + 0.0 for cell, row in rows.items()}
    return {cell: Spread(value, value, value) for cell, value in values.items()}


#: By the word for what is drawn.
PLOTS = {
    "directions": draw_directions,
    "signs": draw_signs,
    "distances": draw_distances,
    "kept": draw_kept,
}
