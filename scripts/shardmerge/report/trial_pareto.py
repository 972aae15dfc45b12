"""Trials in the plane of two objectives, with those that no other trial beats."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shardmerge.base.text import plural
from shardmerge.benchmark.trials import Trial, TrialSet, pareto_front
from shardmerge.report.canvas import BLUE, FAINT, GREY, INK, WIDTH, figure, message
from shardmerge.report.trial_curves import left_out, reach

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches.
_BODY, _TOP, _BOTTOM, _LEFT, _RIGHT = 4.6, 0.65, 0.5, 0.75, 3.2
#: Trials of the front that are named beside the plot.
_NAMED = 12
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw_pareto(
    trials: TrialSet, output: str | os.PathLike[str], objectives: Sequence[str] | None = None
) -> None:
    """Draw trials by two objectives, and the line of those that no other beats in both.

    Args:
        trials: All trials; those that were not measured are only counted.
        output: The file to write, .svg or .png.
        objectives: Labels of two; the first two if there are none.
    """
    across, down = list(objectives or trials.objectives)[:2]
    plane = replace(trials, objectives={m: trials.objectives[m] for m in (across, down)})
    rows = [trial for trial in plane.with_metrics(across, down) if trial.status == "done"]
    title = f"{trials.name}: {across} and {down}"
    if not rows:
        message(output, title, left_out(trials) or "Nothing was measured.")
        return
    best = set(pareto_front(plane))
    front = sorted((t for t in rows if t.name in best), key=lambda t: t.metrics[across].value)
    height = _TOP + _BODY + _BOTTOM
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = (
            f"Blue: {plural(len(front), 'trial')} that no other beats in one without being worse "
            f"in the other. Lines: 95 % interval. {left_out(trials)}"
        )
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        place = _LEFT / WIDTH, _BOTTOM / height, (WIDTH - _LEFT - _RIGHT) / WIDTH, _BODY / height
        axes = drawing.add_axes(place)
        _draw_trials(axes, [t for t in rows if t.name not in best], across, down, GREY)
        _draw_front(axes, front, across, down, plane)
        _name_front(axes, front, across, down)
        for axis, metric in ((axes.xaxis, across), (axes.yaxis, down)):
            better = "higher" if trials.objectives[metric] else "lower"
            axis.set_label_text(f"{metric} ({better} is better)")
        axes.grid(color="#E6E9ED", linewidth=0.7)
        axes.set_axisbelow(True)


def _draw_trials(axes: Axes, rows: Sequence[Trial], across: str, down: str, colour: str) -> None:
    if not rows:
        return
    points = [(t.metrics[across], t.metrics[down]) for t in rows]
    xs, ys = zip(*((x.value, y.value) for x, y in points), strict=True)
    errors = [reach(found) for found in zip(*points, strict=True)]
    axes.errorbar(
        xs, ys, errors[1], errors[0], fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.5
    )
    axes.plot(xs, ys, "o", color=colour, markersize=5.5)


def _draw_front(
    axes: Axes, front: Sequence[Trial], across: str, down: str, plane: TrialSet
) -> None:
    """Draw the front, and the border of what its trials beat."""
    _draw_trials(axes, front, across, down, BLUE)
    xs = [t.metrics[across].value for t in front]
    ys = [t.metrics[down].value for t in front]
    where = "pre" if plane.objectives[across] else "post"
    axes.step(xs, ys, where=where, color=BLUE, linewidth=1.1, alpha=0.7)


def _name_front(axes: Axes, front: Sequence[Trial], across: str, down: str) -> None:
    """Write letters beside the front's trials, and what they are beside the plot."""
    last, most = len(front) - 1, min(len(front), _NAMED)
    shown = [front[round(i * last / max(1, most - 1))] for i in range(most)]
    for i, trial in enumerate(shown):
        variables = ", ".join(f"{name} {_text(value)}" for name, value in trial.variables.items())
        text = f"{_LETTERS[i]}  {trial.name}" + (f"\n    {variables}" if variables else "")
        place = axes.transAxes
        axes.text(1.03, 0.99 - 0.08 * i, text, transform=place, size=8, va="top", color=INK)
        axes.annotate(
            _LETTERS[i],
            (trial.metrics[across].value, trial.metrics[down].value),
            (4, 4),
            textcoords="offset points",
            size=8,
            color=INK,
        )
    if last >= most:
        text = f"and {last + 1 - most} more between them"
        axes.text(1.03, 0.99 - 0.08 * most, text, transform=axes.transAxes, size=8, va="top")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
