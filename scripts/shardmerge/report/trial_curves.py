"""Metrics of trials over one variable, with 95 % intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardmerge.base.text import plural
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet, Value, is_numeric
from shardmerge.report.canvas import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    WIDTH,
    figure,
    message,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours and markers of lines: nobody has to tell them by the colour alone.
LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (SKY, "D"), (INK, "v"), (GREY, "P"))
#: Inches.
_BODY, _TOP, _BOTTOM, _LEFT, _GAP = 3.3, 0.75, 0.5, 0.6, 0.65
#: Inches: a row of a legend, a letter in it, and what stands beside the letters.
_ROW, _LETTER, _MARK = 0.2, 0.075, 0.45
_ARROWS = {True: " ↑", False: " ↓"}


@dataclass(frozen=True)
class _Line:
    label: str
    metric: str
    points: Sequence[tuple[Value, Measurement]]
    candidates: Sequence[tuple[Value, Measurement]]


def draw_curves(
    trials: TrialSet,
    variable: str,
    output: str | os.PathLike[str],
    metrics: Sequence[str] | None = None,
) -> None:
    """Draw metrics over a variable.

    Where no other variable varies, the metrics share a panel. Else each has a panel of its own,
    with a line for each combination of the others.

    Args:
        trials: All trials; those that were not measured are only counted.
        variable: Its name.
        output: The file to write, .svg or .png.
        metrics: Labels; the objectives if there are none.
    """
    metrics = list(metrics or trials.objectives)
    title = f"{trials.name}: {', '.join(metrics)} over {variable}"
    rows = [t for t in trials.trials if variable in t.variables and t.metrics.keys() & {*metrics}]
    if not rows:
        message(output, title, left_out(trials))
        return
    values = [
        v for v in trials.variables()[variable] if any(t.variables[variable] == v for t in rows)
    ]
    panels = _panels(rows, variable, metrics, trials)
    width = (WIDTH - 0.15) / len(panels)
    columns = [_legend_columns(lines, width - _GAP) for _, lines in panels]
    counts = zip(columns, (len(lines) for _, lines in panels), strict=True)
    legend = max(-(-count // across) if across else 0 for across, count in counts)
    height = _TOP + legend * _ROW + _BODY + _BOTTOM
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        few = all(len(lines) <= len(LOOKS) for _, lines in panels)
        note = "Shaded or lines: 95 % interval. "
        note += "Ring: the best. " if few else "Each dot is a trial. "
        note += left_out(trials)
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        for i, (name, lines) in enumerate(panels):
            left = i * width + _LEFT
            place = left / WIDTH, _BOTTOM / height, (width - _GAP) / WIDTH, _BODY / height
            axes = drawing.add_axes(place)
            _draw_panel(axes, lines, values, variable, trials)
            _head_panel(axes, name, columns[i], legend)


def left_out(trials: TrialSet) -> str:
    """Return how many trials cannot be the best, and why; nothing if all may be."""
    words = {"planned": "to come", "failed": "failed", "stopped": "stopped early"}
    counts = [(sum(t.status == status for t in trials.trials), words[status]) for status in words]
    counts.append((sum(t.status == "done" and not t.allowed for t in trials.trials), "excluded"))
    told = [f"{plural(count, 'trial')} {how}" for count, how in counts if count]
    return f"{', '.join(told)}." if told else ""


def reach(found: Sequence[Measurement]) -> list[list[float]]:
    """Return how far 95 % intervals reach below and above the values, 0 where there is none."""
    ends = [(m.value, m.interval or (m.value, m.value)) for m in found]
    return [[y - low for y, (low, _) in ends], [high - y for y, (_, high) in ends]]


def axis_values(values: Sequence[Value]) -> tuple[dict[Value, float], Sequence[float], list[str]]:
    """Return where a variable's values stand on an axis: numbers as they are, others in a row.

    Args:
        values: All of them, in their order.

    Returns:
        The place of each value, ticks, and their labels.
    """
    if is_numeric(list(values)):
        ticks = values if len(values) <= 11 else []
        return {v: float(v) for v in values}, [float(v) for v in ticks], [f"{v:g}" for v in ticks]
    places = {value: float(i) for i, value in enumerate(values)}
    return places, list(places.values()), [str(value) for value in values]


def _panels(
    rows: Sequence[Trial], variable: str, metrics: Sequence[str], trials: TrialSet
) -> list[tuple[str, list[_Line]]]:
    """Return the lines of each panel under its title."""
    varied = [name for name, values in trials.variables().items() if len(values) > 1]
    others = [name for name in varied if name != variable]
    combinations: dict[tuple[Value | None, ...], list[Trial]] = {}
    for trial in rows:
        combinations.setdefault(tuple(trial.variables.get(n) for n in others), []).append(trial)

    def line(label: str, found: Sequence[Trial], metric: str) -> _Line:
        there = [t for t in found if metric in t.metrics]
        points = [(t.variables[variable], t.metrics[metric]) for t in there]
        best = [point for t, point in zip(there, points, strict=True) if t.may_be_best]
        return _Line(label, metric, points, best)

    if not others:
        lines = {metric: line(metric + _arrow(trials, metric), rows, metric) for metric in metrics}
        shared = all(0 <= m.value <= 1 for one in lines.values() for _, m in one.points)
        return [("", [*lines.values()])] if shared else [(m, [lines[m]]) for m in metrics]
    named = {
        ", ".join(f"{name} {value}" for name, value in zip(others, key, strict=True)): found
        for key, found in combinations.items()
    }
    return [
        (
            metric + _arrow(trials, metric),
            [line(key, found, metric) for key, found in named.items()],
        )
        for metric in metrics
    ]


def _arrow(trials: TrialSet, metric: str) -> str:
    return _ARROWS[trials.objectives[metric]] if metric in trials.objectives else ""


def _legend_columns(lines: Sequence[_Line], width: float) -> int:
    """Return how many names of lines stand beside each other; 0 if a panel needs no legend."""
    if not 1 < len(lines) <= len(LOOKS):
        return 0
    longest = max(len(line.label) for line in lines)
    return max(1, min(3, int(width / (_MARK + _LETTER * longest))))


def _head_panel(axes: Axes, title: str, columns: int, rows: int) -> None:
    """Write a panel's title, and below it the names of its lines in so many columns."""
    if title:
        axes.set_title(title, pad=6 + 72 * _ROW * rows)
    if columns:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            frameon=False,
            fontsize=8,
            borderaxespad=0.2,
            handletextpad=0.4,
            columnspacing=1.2,
        )


def _draw_panel(
    axes: Axes,
    lines: Sequence[_Line],
    values: Sequence[Value],
    variable: str,
    trials: TrialSet,
) -> None:
    places, ticks, labels = axis_values(values)
    numeric = is_numeric(list(values))
    few = len(lines) <= len(LOOKS)
    for i, line in enumerate(lines):
        colour, marker = LOOKS[i] if few else (GREY, "o")
        _draw_line(axes, line, places, colour, marker, joined=few and numeric)
        if few and line.candidates and line.metric in trials.objectives:
            _ring_best(axes, line, places, trials.objectives[line.metric], colour)
    axes.set_xlabel(variable)
    if ticks:
        axes.set_xticks(ticks, labels)
    if not numeric:
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.grid(axis="y", color="#E6E9ED", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_line(
    axes: Axes, line: _Line, places: dict[Any, float], colour: str, marker: str, *, joined: bool
) -> None:
    points = sorted(line.points, key=lambda point: places[point[0]])
    xs = [places[value] for value, _ in points]
    ys = [m.value for _, m in points]
    ends = [m.interval or (m.value, m.value) for _, m in points]
    axes.plot(
        xs,
        ys,
        linestyle="-" if joined else "none",
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.6,
        label=line.label,
    )
    if joined and len(xs) > 1:
        axes.fill_between(xs, *zip(*ends, strict=True), color=colour, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(
            xs,
            ys,
            reach([m for _, m in points]),
            fmt="none",
            ecolor=colour,
            elinewidth=1,
            capsize=0,
        )


def _ring_best(axes: Axes, line: _Line, places: dict[Any, float], up: bool, colour: str) -> None:
    value, best = (max if up else min)(line.candidates, key=lambda point: point[1].value)
    axes.plot(
        places[value],
        best.value,
        "o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=1.4,
    )
