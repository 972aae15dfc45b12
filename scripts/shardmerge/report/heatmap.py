"""Heatmaps of layers and modules, a panel for each quantity, on one colour scale."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.base.text import number
from shardmerge.report.canvas import FAINT, HEIGHT, INK, WIDTH, figure
from shardmerge.report.coefficients import Spread
from shardmerge.report.frame import Cell, Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches: rows, and what surrounds the panels.
_ROW, _PANEL_TITLE, _GAP = 0.172, 0.24, 0.14
_TOP, _BOTTOM, _BAR = 0.6, 0.5, 1.9
#: Inches: from the grid to what is outside layers, and its values.
_SPACE, _VALUES = 0.15, 0.5
#: Inches of a label's character.
_LETTER = 0.069
#: Inches from which on a cell gets borders to its sides.
_WIDE = 0.12


@dataclass(frozen=True)
class Scale:
    """A colour scale.

    Args:
        colours: Name of matplotlib's colour map; a diverging one is used from its middle upwards
            where no value is negative.
        label: What the colours are.
        low, high: Values of its ends.
        zero: Whether a value of 0 has a colour; else it is white, as what is not there.
    """

    colours: str
    label: str
    low: float
    high: float
    zero: bool = False


def draw_heatmap(
    output: str | os.PathLike[str],
    title: str,
    note: str,
    frame: Frame,
    panels: Mapping[str, Mapping[Cell, Spread]],
    scale: Scale,
) -> None:
    """Draw a panel for each quantity: modules downwards, layers to the right, what is outside
    layers in a column of its own.

    Args:
        output: The file to write, .svg or .png.
        title, note: Above the panels; what there is to say of all of them.
        frame: Rows and columns.
        panels: Title to value of cells; cells that are not there stay white.
        scale: Shared by all panels.
    """
    body = max(len(frame.modules), len(frame.outside)) * _ROW
    step = _PANEL_TITLE + body + _GAP
    heights = {n: _TOP + math.ceil(len(panels) / n) * step + _BOTTOM for n in (1, 2, 3)}
    columns = next((n for n, height in heights.items() if height <= HEIGHT), 3)
    columns = min(columns, len(panels))
    height = heights[columns]
    # A minus takes room too.
    values = _VALUES + (_LETTER if scale.low < 0 else 0)
    side = _SPACE + _ROW + values if frame.outside else _SPACE
    start = 0.25 + _LETTER * max(map(len, frame.modules), default=0)
    names = _LETTER * max(map(len, frame.outside), default=0)
    room = WIDTH - start - columns * side - names
    # A short model's cells stay cells and do not become stripes.
    width = min(room / columns, frame.layers * 0.5)
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        colours = _Colours(scale)
        colours.draw_bar(drawing, height)
        for i, (name, cells) in enumerate(panels.items()):
            row, column = divmod(i, columns)
            top = height - _TOP - row * step - _PANEL_TITLE
            left = start + column * (width + side)
            drawing.text(
                left / WIDTH, (top + 0.06) / height, name, weight="bold", size=10 - columns
            )
            axes = _axes(drawing, left, top, width, len(frame.modules), height)
            _draw_layers(axes, frame, cells, colours)
            if column:
                axes.set_yticks([])
            if i < len(panels) - columns:
                axes.set_xticklabels([])
                axes.set_xlabel("")
            if frame.outside:
                left += width + _SPACE
                axes = _axes(drawing, left, top, _ROW, len(frame.outside), height)
                ends = column == columns - 1 or i == len(panels) - 1
                _draw_outside(axes, frame, cells, colours, names=ends)


class _Colours:
    def __init__(self, scale: Scale) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap, Normalize

        self.scale = scale
        colours = colormaps[scale.colours]
        if scale.colours == "RdBu":
            # Blue adds, red subtracts, on every figure; the smallest part differs from nothing.
            reach = max(abs(scale.low), abs(scale.high))
            ends = (
                0.5 + 0.43 * scale.low / reach if scale.low else 0.54,
                0.5 + 0.43 * scale.high / reach,
            )
            steps = [ends[0] + (ends[1] - ends[0]) * i / 255 for i in range(256)]
            colours = LinearSegmentedColormap.from_list("part", colours(steps))
        self.map = colours.with_extremes(bad="white")
        self.norm = Normalize(scale.low, scale.high)

    def value(self, spread: Spread | None) -> float:
        """Return a cell's value, NaN where it stays white."""
        return spread.mean if spread and (spread.mean or self.scale.zero) else math.nan

    def draw_bar(self, drawing: Figure, height: float) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.ticker import MaxNLocator

        left = WIDTH - _BAR - 0.15
        axes = drawing.add_axes((left / WIDTH, 1 - 0.36 / height, _BAR / WIDTH, 0.1 / height))
        bar = drawing.colorbar(ScalarMappable(self.norm, self.map), axes, orientation="horizontal")
        bar.set_label(self.scale.label, size=8, labelpad=-25)
        bar.ax.xaxis.set_major_locator(MaxNLocator(4))
        bar.outline.set_linewidth(0.5)
        bar.ax.tick_params(length=2, pad=1, labelsize=7.5)


def _axes(drawing: Figure, left: float, top: float, width: float, rows: int, height: float) -> Axes:
    size = rows * _ROW
    return drawing.add_axes((left / WIDTH, (top - size) / height, width / WIDTH, size / height))


def _draw_layers(axes: Axes, frame: Frame, cells: Mapping[Cell, Spread], colours: _Colours) -> None:
    grid = [[colours.value(cells.get((m, n))) for n in range(frame.layers)] for m in frame.modules]
    if not grid:
        axes.set_axis_off()
        return
    axes.imshow(grid, cmap=colours.map, norm=colours.norm, aspect="auto", interpolation="none")
    for i in range(1, len(frame.modules)):
        axes.axhline(i - 0.5, color="white", linewidth=0.8)
    width = axes.get_position().width * WIDTH / frame.layers
    if width >= _WIDE:
        for n in range(1, frame.layers):
            axes.axvline(n - 0.5, color="white", linewidth=0.8)
    numbers = {row: i for i, row in enumerate(frame.modules)}
    dots = [
        (layer, numbers[row])
        for (row, layer), spread in cells.items()
        if layer is not None and spread.varies
    ]
    if dots:
        axes.scatter(*zip(*dots, strict=True), s=1.5, c=INK, linewidths=0)
    axes.set_yticks(range(len(frame.modules)), frame.modules)
    axes.tick_params(left=False)
    step = next(n for n in (1, 2, 5, 10, 20, 50, 1000) if n * width > 0.3)
    axes.set_xticks(range(0, frame.layers, step))
    axes.tick_params(axis="x", length=2.5)
    axes.set_xlabel("layer")
    axes.spines[:].set_visible(True)


def _draw_outside(
    axes: Axes, frame: Frame, cells: Mapping[Cell, Spread], colours: _Colours, *, names: bool
) -> None:
    values = [cells.get((row, None)) for row in frame.outside]
    grid = [[colours.value(value)] for value in values]
    axes.imshow(grid, cmap=colours.map, norm=colours.norm, aspect="auto", interpolation="none")
    for i in range(1, len(values)):
        axes.axhline(i - 0.5, color="white", linewidth=0.8)
    texts = ["-" if math.isnan(colours.value(value)) else number(value.mean) for value in values]
    if names:
        texts = [f"{row}  {text}" for row, text in zip(frame.outside, texts, strict=True)]
    axes.set_yticks(range(len(values)), texts)
    axes.yaxis.tick_right()
    axes.tick_params(right=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(True)
