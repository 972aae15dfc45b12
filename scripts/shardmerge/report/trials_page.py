"""Trials as a page to explore: one picture of any two quantities, one of all, a table.

The pictures are drawn by plotly.js, which the page carries along, so that it needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.benchmark.comparison_rows import value_text
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet, is_numeric, pareto_front
from shardmerge.report.canvas import BLUE, GREY
from shardmerge.report.html import Marked, heading, html_table, page, paragraph
from shardmerge.report.trial_curves import left_out, reach

_CONFIG = {"displaylogo": False, "responsive": True}
#: Lines of intervals, which are seen on light and dark paper.
_LINES = {"symmetric": False, "thickness": 1, "width": 0, "color": "rgba(128,128,128,0.7)"}
_DRAW = """
const ink = getComputedStyle(document.body).color;
for (const element of document.querySelectorAll("script[type='application/json']")) {
  const figure = JSON.parse(element.textContent);
  const looks = {font: {color: ink}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)"};
  for (const axis of ["xaxis", "yaxis"])
    if (axis in figure.layout) figure.layout[axis].gridcolor = "rgba(128,128,128,0.25)";
  Plotly.newPlot(element.dataset.place, figure.data, {...figure.layout, ...looks}, figure.config);
}
"""


def trials_page(trials: TrialSet) -> str:
    """Return the page.

    Args:
        trials: All trials.

    Raises:
        UserError: If plotly is not installed.
    """
    rows = [t for t in trials.trials if t.metrics]
    parts = [paragraph(left_out(trials), "note")] if left_out(trials) else []
    if rows:
        parts += [
            heading("Any two quantities"),
            paragraph("Choose what runs to the right and upwards. Point at a trial to read it."),
            *_figure("plane", _plane(trials, rows)),
            heading("All of them"),
            paragraph("Draw along an axis to keep only the trials that pass there."),
            *_figure("all", _parallel(trials, rows)),
            f"<script>{_plotly()}</script>",
            f"<script>{_DRAW}</script>",
        ]
    parts += [heading("Trials"), _table(trials)]
    return page(f"Trials of {trials.name}", parts)


def _figure(name: str, figure: dict[str, Any]) -> Iterator[str]:
    # what could end the element is written in another way, which is the same JSON
    text = json.dumps(figure, sort_keys=True).replace("<", "\\u003c")
    yield f'<div id="{name}"></div>'
    yield f'<script type="application/json" data-place="{name}">{text}</script>'


def _plotly() -> str:
    try:
        return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError):
        raise UserError(
            "plotly is not installed, which draws the page of a sweep",
            hint="`make env` installs all that benchmarks and sweeps need.",
        ) from None


def _quantities(trials: TrialSet, rows: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the values of each objective, other metric and variable, trial by trial."""
    names = dict.fromkeys([*trials.objectives, *(m for t in rows for m in t.metrics)])
    found: dict[str, list[Any]] = {
        name: [_value(t.metrics.get(name)) for t in rows] for name in names
    }
    for name in trials.variables():
        found.setdefault(name, [_plain(t.variables.get(name)) for t in rows])
    return found


def _plain(value: Any) -> Any:
    """Return a value so that plotly, which reads some HTML, shows it as it is."""
    return escape(value) if isinstance(value, str) else value


def _value(found: Measurement | None) -> float | None:
    """Return a number that JSON has, or None."""
    return found.value if found and abs(found.value) < float("inf") else None


def _plane(trials: TrialSet, rows: Sequence[Trial]) -> dict[str, Any]:
    """Return a scatter plot whose axes can be chosen."""
    found = _quantities(trials, rows)
    across, down = (list(trials.objectives) * 2)[:2]
    if across == down:
        across = next(iter(trials.variables()), across)
    best = set(pareto_front(trials))
    halves = {
        name: _ends([t.metrics.get(name) for t in rows]) if name not in trials.variables() else {}
        for name in found
    }
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": found[across],
        "y": found[down],
        "error_x": _LINES | halves[across],
        "error_y": _LINES | halves[down],
        "marker": {"size": 10, "color": [BLUE if t.name in best else GREY for t in rows]},
        "text": [_hover(trial) for trial in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }
    menus = [_menu("x", found, halves, across, 0.0), _menu("y", found, halves, down, 0.35)]
    layout = {
        "height": 520,
        "xaxis": {"title": {"text": escape(across)}},
        "yaxis": {"title": {"text": escape(down)}},
        "updatemenus": menus,
        "margin": {"t": 60, "r": 20, "l": 70, "b": 60},
        "hovermode": "closest",
    }
    return {"data": [trace], "layout": layout, "config": _CONFIG}


def _menu(axis: str, found: Any, halves: Any, active: str, x: float) -> dict[str, Any]:
    """Return a list to choose an axis's quantity from."""
    buttons = [
        {
            "label": f"{axis}: {escape(name)}",
            "method": "update",
            "args": [
                {axis: [values]}
                | {f"error_{axis}.{k}": [halves[name].get(k)] for k in ("array", "arrayminus")},
                {f"{axis}axis.title.text": escape(name)},
            ],
        }
        for name, values in found.items()
    ]
    place = {"x": x, "y": 1.02, "xanchor": "left", "yanchor": "bottom"}
    colours = {"bgcolor": "rgba(128,128,128,0.2)", "font": {"color": "#6E7781"}}
    return {"buttons": buttons, "active": list(found).index(active)} | place | colours


def _ends(found: Sequence[Measurement | None]) -> dict[str, list[float]]:
    """Return how far intervals reach, as plotly wants it."""
    known = [one or Measurement(value=0.0) for one in found]
    return dict(zip(("arrayminus", "array"), reach(known), strict=True))


def _hover(trial: Trial) -> str:
    lines = [f"<b>{escape(trial.name)}</b>"]
    lines += [f"{escape(name)}: {escape(str(value))}" for name, value in trial.variables.items()]
    lines += [f"{escape(name)}: {_shown(found)}" for name, found in trial.metrics.items()]
    return "<br>".join(lines)


def _shown(found: Measurement | None) -> str:
    if found is None:
        return "-"
    return value_text(found.value, *(found.interval or (None, None)))


def _parallel(trials: TrialSet, rows: Sequence[Trial]) -> dict[str, Any]:
    """Return an axis for each quantity that varies, a line for each trial."""
    dimensions = []
    first = next(iter(trials.objectives))
    for name, values in _quantities(trials, rows).items():
        known = list(dict.fromkeys(v for v in values if v is not None))
        if len(known) < 2 or None in values:
            continue
        dimension: dict[str, Any] = {"label": escape(name), "values": values}
        if not is_numeric(known):
            dimension["values"] = [known.index(value) for value in values]
            dimension |= {"tickvals": [*range(len(known))]}
            dimension |= {"ticktext": [str(value) for value in known]}
        dimensions.append(dimension)
    names = {escape(name) for name in trials.variables()}
    dimensions.sort(key=lambda one: one["label"] not in names)
    colours = [_value(t.metrics.get(first)) for t in rows]
    line = {"color": colours, "colorscale": "Viridis", "showscale": True}
    line |= {"reversescale": not trials.objectives[first]}
    line |= {"colorbar": {"title": {"text": escape(first)}}}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line}
    layout = {"height": 460, "margin": {"t": 60, "r": 60, "l": 90, "b": 40}}
    return {"data": [trace], "layout": layout, "config": _CONFIG}


def _table(trials: TrialSet) -> str:
    variables = list(trials.variables())
    metrics = list(
        dict.fromkeys([*trials.objectives, *(m for t in trials.trials for m in t.metrics)])
    )
    best = set(pareto_front(trials))
    rows = [
        [
            Marked(trial.name, "good" if trial.name in best else ""),
            *(str(trial.variables.get(name, "-")) for name in variables),
            *(_shown(trial.metrics.get(name)) for name in metrics),
            "best" if trial.name in best else trial.status if trial.allowed else "excluded",
        ]
        for trial in trials.trials
    ]
    header = ["trial", *variables, *metrics, "status"]
    return html_table(header, rows, range(1 + len(variables), 1 + len(variables) + len(metrics)))
