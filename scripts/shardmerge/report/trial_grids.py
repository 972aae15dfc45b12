"""Metrics of trials over two variables, and over all of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.benchmark.trials import (
    Measurement,
    Trial,
    TrialSet,
    Value,
    is_numeric,
    pareto_front,
)
from shardmerge.report.canvas import FAINT, HEIGHT, INK, WIDTH, figure, message
from shardmerge.report.trial_curves import axis_values, left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches.
_ROW, _COLUMN, _TOP, _TITLE, _BOTTOM, _LETTER = 0.42, 0.95, 0.55, 0.25, 0.5, 0.075
_BODY = 3.9


def draw_trial_grid(
    trials: TrialSet,
    variables: tuple[str, str],
    output: str | os.PathLike[str],
    metrics: Sequence[str] | None = None,
) -> None:
    """Draw metrics over two variables, a cell for each pair of values, one below the other.

    Where several trials share a cell, since other variables vary too, the best of them is shown.

    Args:
        trials: All trials; those that were not measured leave their cells white.
        variables: To the right, and downwards.
        output: The file to write, .svg or .png.
        metrics: Labels; the objectives if there are none.
    """
    metrics = list(metrics or trials.objectives)
    across, down = variables
    title = f"{trials.name}: {', '.join(metrics)} over {across} and {down}"
    cells = {metric: _cells(trials, variables, metric) for metric in metrics}
    if not any(cells.values()):
        message(output, title, left_out(trials) or "Nothing was measured.")
        return
    columns, rows = (trials.variables()[name] for name in variables)
    left = 0.4 + _LETTER * max(len(_text(value)) for value in rows)
    width = min(len(columns) * _COLUMN, WIDTH - left - 0.3)
    each = min(len(rows) * _ROW, (HEIGHT - _TOP) / len(metrics) - _TITLE - _BOTTOM)
    height = _TOP + (_TITLE + each + _BOTTOM) * len(metrics)
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = "± half of a 95 % interval. Frame: the best. White: not measured. "
        note += "The best trial of each cell. " if len(trials.variables()) > 2 else ""
        note += left_out(trials)
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        for i, metric in enumerate(metrics, 1):
            low = height - _TOP - (_TITLE + each + _BOTTOM) * i + _BOTTOM
            axes = drawing.add_axes((left / WIDTH, low / height, width / WIDTH, each / height))
            up = trials.objectives.get(metric, True)
            if cells[metric]:
                _draw_cells(axes, cells[metric], metric, (columns, rows), up, width / len(columns))
            axes.set_title(metric, pad=5)
            axes.set_xlabel(across)
            axes.set_ylabel(down)


def _cells(
    trials: TrialSet, variables: tuple[str, str], metric: str
) -> dict[tuple[Value, Value], Trial]:
    """Return the best trial of each pair of values."""
    up = trials.objectives.get(metric, True)
    cells: dict[tuple[Value, Value], Trial] = {}
    for trial in trials.with_metrics(metric):
        if not set(variables) <= trial.variables.keys():
            continue
        key = trial.variables[variables[0]], trial.variables[variables[1]]
        known = cells.get(key)
        if known is None or _rank(trial, metric, up) > _rank(known, metric, up):
            cells[key] = trial
    return cells


def _rank(trial: Trial, metric: str, up: bool) -> tuple[bool, float]:
    """Return what is greater for the better one of two trials; one that is excluded comes last."""
    return trial.may_be_best, trial.metrics[metric].value * (1 if up else -1)


def _draw_cells(
    axes: Axes,
    cells: dict[tuple[Value, Value], Trial],
    metric: str,
    values: tuple[Sequence[Value], Sequence[Value]],
    up: bool,
    room: float,
) -> None:
    columns, rows = values
    scores = {place: trial.metrics[metric] for place, trial in cells.items()}
    grid = [[scores[c, r].value if (c, r) in cells else math.nan for c in columns] for r in rows]
    image = axes.imshow(grid, cmap="viridis" if up else "viridis_r", aspect="auto")
    best = max(cells.values(), key=lambda trial: _rank(trial, metric, up))
    for (column, row), found in scores.items():
        x, y = columns.index(column), rows.index(row)
        low, high = found.interval or (0.0, 0.0)
        half = f" ± {(high - low) / 2:.{_digits(found)}f}" if high > low and room > 0.8 else ""
        shade = image.cmap(image.norm(found.value))
        light = 0.3 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2] > 0.5
        text = f"{found.value:.{_digits(found)}f}{half}"
        if room > 0.34:
            axes.text(x, y, text, ha="center", va="center", size=8, color=INK if light else "white")
        if cells[column, row] is best and best.may_be_best:
            axes.plot(
                [x - 0.46, x + 0.46, x + 0.46, x - 0.46, x - 0.46],
                [y - 0.44, y - 0.44, y + 0.44, y + 0.44, y - 0.44],
                color="#D55E00",
                linewidth=2,
            )
    axes.set_xticks(range(len(columns)), map(_text, columns))
    axes.set_yticks(range(len(rows)), map(_text, rows))
    axes.tick_params(length=0)


def draw_parallel(
    trials: TrialSet, output: str | os.PathLike[str], metric: str | None = None
) -> None:
    """Draw each trial as a line through an axis for each variable and objective.

    Args:
        trials: All trials; those that were not measured are only counted.
        output: The file to write, .svg or .png.
        metric: Whose value colours the lines; the first objective if there is none.
    """
    metric = metric or next(iter(trials.objectives))
    rows = trials.with_metrics(*trials.objectives, metric)
    title = f"{trials.name}: all variables and objectives"
    if not rows:
        message(output, title, left_out(trials) or "Nothing was measured.")
        return
    varied = {name: values for name, values in trials.variables().items() if len(values) > 1}
    shown = [t for t in rows if varied.keys() <= t.variables.keys()]
    up = trials.objectives.get(metric, True)
    shown.sort(key=lambda t: t.metrics[metric].value if up else -t.metrics[metric].value)
    axes_of: dict[str, list[Any]] = dict(varied) | {
        m: [t.metrics[m].value for t in shown] for m in trials.objectives
    }
    best = set(pareto_front(trials))
    height = 0.1 + _TOP + _BODY + _BOTTOM
    with figure(output, height) as drawing:
        from matplotlib import colormaps

        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = f"A line is a trial; dark is better in {metric}. Thick: no other trial beats it. "
        note += left_out(trials)
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        room = 0.08, (_BOTTOM - 0.1) / height, 0.84, (_BODY - 0.1) / height
        axes = drawing.add_axes(room)
        scales = [_scale(values) for values in axes_of.values()]
        for rank, trial in enumerate(shown):
            values = [trial.variables[n] for n in varied]
            values += [trial.metrics[m].value for m in trials.objectives]
            ys = [place[value] for (place, *_), value in zip(scales, values, strict=True)]
            colour = colormaps["viridis_r"](0.1 + 0.9 * rank / max(1, len(shown) - 1))
            thick = trial.name in best
            axes.plot(
                range(len(ys)),
                ys,
                color=colour,
                linewidth=2.2 if thick else 0.9,
                alpha=1.0 if thick else 0.6,
            )
        _draw_scales(axes, list(axes_of), scales)


def _scale(values: Sequence[Any]) -> tuple[dict[Any, float], list[float], list[str]]:
    """Return where values stand between 0 and 1, ticks, and their labels."""
    places, ticks, labels = axis_values(values)
    low, high = min(places.values()), max(places.values())
    span = (high - low) or 1.0
    if len(labels) > 11 or (not labels and is_numeric(list(values))) or len(set(values)) > 11:
        ticks = [low + span * i / 4 for i in range(5)]
        labels = [_number(tick) for tick in ticks]
    at = {value: (place - low) / span for value, place in places.items()}
    return at, [(tick - low) / span for tick in ticks], labels


def _draw_scales(axes: Axes, names: Sequence[str], scales: Sequence[Any]) -> None:
    for x, (name, (_, ticks, labels)) in enumerate(zip(names, scales, strict=True)):
        axes.axvline(x, color=INK, linewidth=0.8)
        for tick, label in zip(ticks, labels, strict=True):
            axes.text(
                x + 0.02,
                tick,
                label,
                size=7.5,
                va="center",
                color=FAINT,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )
        axes.text(x, 1.05, name, ha="center", size=9, weight="bold")
    axes.set_xlim(-0.05, len(names) - 0.75)
    axes.set_ylim(-0.03, 1.03)
    axes.set_axis_off()


def _digits(found: Measurement) -> int:
    return 3 if abs(found.value) < 10 else 2


def _number(value: float) -> str:
    return f"{value:.3g}"


def _text(value: Value) -> str:
    return _number(value) if isinstance(value, float) else str(value)
