"""Figures that look alike and are the same bytes every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shardmerge.base.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Inches; 960 pixels in a browser, which fits beside the navigation of Snakemake's report.
WIDTH = 10.0
#: Inches; that report cuts off the top of a picture that is higher than its window.
HEIGHT = 6.8
#: Okabe and Ito's palette, distinct under every colour blindness; https://jfly.uni-koeln.de/color.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
SKY, GREY = "#56B4E9", "#8A8F98"
INK, FAINT = "#24292F", "#6E7781"

_STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 9,
    "text.parse_math": False,  # names may hold dollars
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#C8CDD3",
    "axes.linewidth": 0.8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.facecolor": "white",
    "svg.fonttype": "path",  # looks the same without the font
    "svg.hashsalt": "shardmerge",
}


@contextmanager
def figure(output: str | os.PathLike[str], height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Give a figure to draw on, and write it as SVG (or PNG) when the block ends without an error.

    Args:
        output: The file, by whose suffix the format is chosen.
        height, width: Inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    kind = "png" if str(output).endswith(".png") else "svg"
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever matplotlibrc a user has
        matplotlib.rcParams.update(_STYLE)
        drawing = Figure(figsize=(width, height))
        yield drawing
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        with atomic_path(output) as part:
            drawing.savefig(part, format=kind, metadata=metadata, dpi=96)


def message(output: str | os.PathLike[str], title: str, text: str) -> None:
    """Write a figure that only says something."""
    with figure(output, 1.4) as drawing:
        drawing.text(0.02, 0.72, title, weight="bold", size=10)
        drawing.text(0.02, 0.56, text, size=9, color=FAINT, va="top", wrap=True)
