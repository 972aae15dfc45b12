"""How a search came to its best trial: every trial in its order, and the best so far."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shardmerge.benchmark.trials import Trial, TrialSet
from shardmerge.report.canvas import BLUE, FAINT, GREY, ORANGE, WIDTH, figure, message
from shardmerge.report.trial_curves import left_out, reach

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches.
_BODY, _TOP, _BOTTOM, _LEFT, _GAP = 2.7, 0.95, 0.5, 0.6, 0.65
_ARROWS = {True: " ↑", False: " ↓"}


def draw_convergence(trials: TrialSet, output: str | os.PathLike[str]) -> None:
    """Draw each objective over the trials, in the order in which they were asked for.

    Args:
        trials: Of a search.
        output: The file to write, .svg or .png.
    """
    title = f"{trials.name}: {', '.join(trials.objectives)} over the trials of the search"
    rows = trials.with_metrics(*trials.objectives)
    if not rows:
        message(output, title, left_out(trials))
        return
    height = _TOP + _BODY + _BOTTOM
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = "Line: the best so far within the constraints. Crosses: excluded or stopped trials. "
        note += f"Thin lines: 95 % interval. {left_out(trials)}"
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        width = (WIDTH - 0.15) / len(trials.objectives)
        for i, (label, up) in enumerate(trials.objectives.items()):
            left = i * width + _LEFT
            place = left / WIDTH, _BOTTOM / height, (width - _GAP) / WIDTH, _BODY / height
            axes = drawing.add_axes(place)
            _draw(axes, trials, label, up)
            axes.set_title(label + _ARROWS[up], pad=8)


def _draw(axes: Axes, trials: TrialSet, label: str, up: bool) -> None:
    placed = [(i, t) for i, t in enumerate(trials.trials, 1) if label in t.metrics]
    counted = [(i, t) for i, t in placed if t.may_be_best]
    others = [pair for pair in placed if pair not in counted]
    for pairs, marker, colour in ((others, "x", GREY), (counted, "o", BLUE)):
        _draw_dots(axes, pairs, label, marker, colour)
    if counted:
        best, values = None, []
        for _, trial in counted:
            value = trial.metrics[label].value
            best = value if best is None else (max if up else min)(best, value)
            values.append(best)
        places = [*(i for i, _ in counted), len(trials.trials)]
        axes.step(places, [*values, values[-1]], where="post", color=ORANGE, linewidth=1.6)
    axes.set_xlabel("trial")
    axes.set_xlim(0, len(trials.trials) + 1)
    axes.grid(axis="y", color="#E6E9ED", linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_dots(
    axes: Axes, pairs: list[tuple[int, Trial]], label: str, marker: str, colour: str
) -> None:
    if not pairs:
        return
    found = [trial.metrics[label] for _, trial in pairs]
    xs, ys = [i for i, _ in pairs], [m.value for m in found]
    axes.errorbar(xs, ys, reach(found), fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.5)
    axes.plot(xs, ys, linestyle="none", marker=marker, markersize=4, color=colour)
