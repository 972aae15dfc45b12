"""Heatmaps of layers and modules, a panel for each quantity, on one colour scale."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmerge.report.canvas import FAINT, INK, WIDTH, figure
from shardmerge.report.coefficients import Spread
from shardmerge.report.frame import Cell, Frame
from shardmerge.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches.
_ROW, _TITLE, _TOP, _BOTTOM, _GAP = 0.172, 0.26, 0.62, 0.62, 0.1
_LEFT, _RIGHT, _SIDE, _BAR = 1.75, 1.5, 0.62, 0.12


@dataclass(frozen=True)
class Scale:
    """A colour scale.

    Args:
        colours: Name of matplotlib's colour map; a diverging one is used from its middle upwards
            where no value is negative.
        label: What the colours are.
        low, high: Values of its ends.
    """

    colours: str
    label: str
    low: float
    high: float


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
    rows = max(len(frame.modules), len(frame.outside))
    body = rows * _ROW
    height = _TOP + len(panels) * (_TITLE + body + _GAP) + _BOTTOM
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        image = None
        for i, (name, cells) in enumerate(panels.items()):
            top = 1 - (_TOP + _TITLE + i * (_TITLE + body + _GAP)) / height
            last = i == len(panels) - 1
            image = _panel(drawing, frame, name, cells, scale, top, height, last) or image
        _colour_bar(drawing, image, scale, height)
