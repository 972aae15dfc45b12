"""Benchmark results as bars: a panel for each task, a bar for each model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.base.text import plural
from shardmerge.benchmark.probe_units import unit_of
from shardmerge.report.canvas import BLUE, FAINT, GREY, INK, WIDTH, figure, message

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches that a panel needs.
_PANEL = 2.2
#: Inches.
_ROW, _PANEL_TITLE, _GAP = 0.24, 0.3, 0.34
_TOP, _BOTTOM, _RIGHT, _VALUES = 0.6, 0.15, 0.05, 1.15

_ARROWS = {True: " ↑", False: " ↓", None: ""}

Score = Mapping[str, Any]


def draw_benchmarks(
    table: Mapping[str, Any], output: str | os.PathLike[str], merged: str | None = None
) -> None:
    """Draw the tasks that were asked for, then groups' parts, one panel each, with errors.

    Args:
        table: As ``scores.to_json`` gives it; a cell's ``chance``, where it has one, is marked.
        output: The file to write.
        merged: The model whose bars stand out.
    """
    models = list(table["models"])
    panels: dict[str, list[Score]] = {}
    for row in sorted(table["cells"], key=lambda row: not row["headline"]):
        panels.setdefault(row["label"], []).append(row)
    title = "Benchmarks"
    if not panels:
        message(output, title, "Nothing was measured.")
        return
    left = 0.3 + 0.075 * max(map(len, models))
    across = max(1, min(int((WIDTH - left) / _PANEL), len(panels)))
    body = len(models) * _ROW
    down = math.ceil(len(panels) / across)
    notes = _notes(table, panels)
    height = _TOP + down * (_PANEL_TITLE + body + _GAP) + _BOTTOM + 0.16 * (len(notes) - 1)
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        drawing.text(0.012, 1 - 0.42 / height, notes[0], color=FAINT, size=8, va="center")
        for i, note in enumerate(reversed(notes[1:])):
            drawing.text(0.012, (0.1 + 0.16 * i) / height, note, color=FAINT, size=8)
        width = (WIDTH - left - _RIGHT) / across
        for i, (label, rows) in enumerate(panels.items()):
            line, column = divmod(i, across)
            bottom = height - _TOP - (line + 1) * (_PANEL_TITLE + body) - line * _GAP
            axes = drawing.add_axes(
                (
                    (left + column * width) / WIDTH,
                    bottom / height,
                    (width - _VALUES) / WIDTH,
                    body / height,
                )
            )
            _draw_task(axes, label, rows, models, merged, names=column == 0)


def _notes(table: Mapping[str, Any], panels: Mapping[str, Sequence[Score]]) -> list[str]:
    """Return the line under the title, and the table's footnotes."""
    rows = [row for panel in panels.values() for row in panel]
    counts = sorted({row["samples"] for row in rows if row["samples"] and _asks(row)})
    note = "Lines: one standard error."
    for better, meaning in ((True, "higher"), (False, "lower")):
        if any(row["higher_is_better"] is better for row in rows):
            note += f"{_ARROWS[better]}: {meaning} is better."
    if counts:
        low, high = counts[0], counts[-1]
        each = plural(low, "question") if low == high else f"{low:,} to {high:,} questions"
        note += f" {each} each."
    if any(row.get("chance") is not None for row in rows):
        note += " Dashed: chance."
    return [note, *(f"[{i}] {text}" for i, text in enumerate(table["footnotes"], 1))]


def _asks(row: Score) -> bool:
    return unit_of(row["label"].partition("/")[0], row.get("settings", {})) == "question"


def _draw_task(
    axes: Axes,
    label: str,
    rows: Sequence[Score],
    models: Sequence[str],
    merged: str | None,
    *,
    names: bool,
) -> None:
    found = {row["model"]: row for row in rows}
    shares = all(0 <= row["value"] <= 1 for row in rows)
    for y, model in enumerate(models):
        row = found.get(model)
        if row is None:
            axes.text(0, y, " not measured", size=8, color=FAINT, va="center")
            continue
        value, error = row["value"], row["stderr"]
        axes.barh(y, value, color=BLUE if merged in (None, model) else GREY, height=0.66)
        if error:
            axes.errorbar(value, y, xerr=error, color=INK, linewidth=1.2, capsize=0)
        digits = 3 if abs(value) < 10 else 2
        text = f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")
        text += "".join(f" [{n}]" for n in row["notes"])
        place = axes.get_yaxis_transform()
        axes.text(1.04, y, text, transform=place, size=8, va="center")
    chance = next((row["chance"] for row in rows if row.get("chance") is not None), None)
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
    axes.set_xlim(0, 1 if shares else None)
    axes.set_ylim(len(models) - 0.45, -0.55)
    axes.set_yticks(range(len(models)), models if names else [])
    axes.tick_params(left=False)
    axes.set_title(label + _ARROWS[rows[0]["higher_is_better"]], pad=4)
    for tick, model in zip(axes.get_yticklabels(), models, strict=False):
        tick.set_fontweight("bold" if model == merged else "normal")
