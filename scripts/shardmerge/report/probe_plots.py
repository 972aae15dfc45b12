"""What probes of models found: divergences from other models, needles by length and depth."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.base.text import plural
from shardmerge.benchmark.paired import Z
from shardmerge.report.canvas import BLUE, FAINT, GREY, INK, WIDTH, figure, message

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches.
_ROW, _TITLE, _GAP, _TOP, _BOTTOM = 0.26, 0.3, 0.45, 0.65, 0.3
_LETTER = 0.075
#: Inches beside a panel, for its numbers.
_VALUES = 2.3
_CELL_HEIGHT = 0.3
_KL = "kl_"
_MARKS = (("median", "o", "white"), ("mean", "o", None), ("p95", "|", None), ("p99", "D", None))


def draw_divergences(
    table: Mapping[str, Any], output: str | os.PathLike[str], merged: str | None = None
) -> None:
    """Draw how far each model's predictions are from each reference's, a panel for a reference.

    Args:
        table: As ``comparison_table.comparison_json`` gives it.
        output: The file to write.
        merged: The model that stands out.
    """
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in table["cells"]:
        task, _, metric = cell["label"].rpartition("/")
        if task.startswith(_KL):
            rows = panels.setdefault(task.removeprefix(_KL), {})
            rows.setdefault(cell["model"], {})[metric] = cell
    title = "Divergence from other models"
    if not panels:
        message(output, title, "No model was compared with another on a text.")
        return
    names = [model for model in table["models"] if any(model in rows for rows in panels.values())]
    left = 0.3 + _LETTER * max(map(len, names))
    body = _ROW * len(names)
    height = _TOP + len(panels) * (_TITLE + body + _GAP) + _BOTTOM
    lowest, highest = _reach(panels)
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = "Kullback-Leibler divergence of each token's prediction, in nats: "
        note += "○ median, ● mean with its 95 % interval, | 95th and ◆ 99th percentile."
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        for i, (reference, rows) in enumerate(panels.items()):
            bottom = height - _TOP - (i + 1) * (_TITLE + body) - i * _GAP
            place = (left / WIDTH, bottom / height, (WIDTH - left - _VALUES) / WIDTH, body / height)
            axes = drawing.add_axes(place)
            _draw_reference(axes, reference, rows, names, merged)
            axes.set_xlim(lowest, highest)


def _reach(panels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[float, float]:
    """Return the ends of the axis, which is logarithmic."""
    values = [
        cell["value"]
        for rows in panels.values()
        for metrics in rows.values()
        for name, cell in metrics.items()
        if name in ("median", "mean", "p95", "p99") and cell["value"] > 0
    ]
    if not values:
        return 1e-4, 1.0
    # a median may be as good as 0: five powers of ten are enough to see
    return max(min(values) / 1.5, max(values) * 1e-5), max(values) * 1.5


def _draw_reference(
    axes: Axes,
    reference: str,
    rows: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    merged: str | None,
) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(lambda *_: "")
    for y, model in enumerate(names):
        metrics = rows.get(model)
        if metrics is None:
            text = "itself" if model == reference else "not compared"
            side = axes.get_yaxis_transform()
            axes.text(0.01, y, text, size=8, color=FAINT, va="center", transform=side)
            continue
        colour = BLUE if merged in (None, model) else GREY
        values = {name: metrics[name]["value"] for name, *_ in _MARKS if name in metrics}
        shown = [value for value in values.values() if value > 0]
        if shown:
            axes.plot([min(shown), max(shown)], [y, y], color=colour, linewidth=1, alpha=0.5)
        error = metrics["mean"]["stderr"] if "mean" in metrics else None
        if error and values["mean"] > 0:
            axes.errorbar(values["mean"], y, xerr=Z * error, color=INK, linewidth=1.4)
        for name, marker, face in _MARKS:
            if values.get(name, 0) > 0:
                axes.plot(values[name], y, marker=marker, color=colour, ms=6,
                          mfc=face or colour, mew=1.4, linestyle="none")  # fmt: skip
        told = f"mean {values.get('mean', math.nan):.4f}"
        if "same_top" in metrics:
            told += f", same token {100 * metrics['same_top']['value']:.1f} %"
        axes.text(1.02, y, told, size=8, va="center", transform=axes.get_yaxis_transform())
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(left=False)
    axes.grid(axis="x", color="#EAEEF2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"from {reference}", pad=4)
    for tick, model in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_fontweight("bold" if model == merged else "normal")


def needle_shares(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, float], tuple[int, int]]:
    """Return how many needles were found, of how many, by length and depth.

    Args:
        rows: Samples of the probe ``needle``.
    """
    found: dict[tuple[int, float], tuple[int, int]] = {}
    for row in rows:
        key = (int(row["doc"]["length"]), float(row["doc"]["depth"]))
        right, count = found.get(key, (0, 0))
        found[key] = right + int(row["acc"]), count + 1
    return dict(sorted(found.items()))


def draw_needles(
    models: Mapping[str, Mapping[tuple[int, float], tuple[int, int]]],
    output: str | os.PathLike[str],
    merged: str | None = None,
) -> None:
    """Draw which share of needles each model found: lengths to the right, depths downwards.

    Args:
        models: What ``needle_shares`` gives for each.
        output: The file to write.
        merged: The model that stands out.
    """
    title = "Needles in a text"
    cells = [key for grid in models.values() for key in grid]
    if not cells:
        message(output, title, "No needle was looked for.")
        return
    lengths = sorted({length for length, _ in cells})
    depths = sorted({depth for _, depth in cells})
    body = _CELL_HEIGHT * len(depths)
    across = min(3, len(models))
    down = math.ceil(len(models) / across)
    step = _TITLE + body + _GAP + 0.15
    height = _TOP + down * step + 0.1
    counts = {count for grid in models.values() for _, count in grid.values()}
    with figure(output, height) as drawing:
        drawing.text(0.012, 1 - 0.2 / height, title, weight="bold", size=11, va="center")
        note = (
            f"Share of {plural(max(counts), 'secret')} found, for each length of the text in "
            "tokens and place of the needle. By chance 0.1."
        )
        drawing.text(0.012, 1 - 0.42 / height, note, color=FAINT, size=8, va="center")
        room = (WIDTH - 0.75) / across
        for i, (model, grid) in enumerate(models.items()):
            line, column = divmod(i, across)
            left = 0.7 + column * room
            top = height - _TOP - line * step - _TITLE
            place = (left / WIDTH, (top - body) / height, (room - 0.3) / WIDTH, body / height)
            axes = drawing.add_axes(place)
            _draw_grid(axes, grid, lengths, depths)
            axes.set_title(model, pad=4, fontweight="bold" if model == merged else "normal")
            if column:
                axes.set_yticks([])
            else:
                axes.set_ylabel("depth")
            axes.set_xlabel("tokens", labelpad=1)


def _draw_grid(
    axes: Axes,
    grid: Mapping[tuple[int, float], tuple[int, int]],
    lengths: Sequence[int],
    depths: Sequence[float],
) -> None:
    from matplotlib import colormaps

    colours = colormaps["Blues"].with_extremes(bad="white")
    shares = {key: right / count for key, (right, count) in grid.items()}
    values = [[shares.get((n, d), math.nan) for n in lengths] for d in depths]
    axes.imshow(values, cmap=colours, vmin=-0.1, vmax=1.25, aspect="auto", interpolation="none")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            told = "-" if math.isnan(value) else f"{value:.2f}"
            colour = "white" if value > 0.7 else INK
            axes.text(x, y, told, ha="center", va="center", size=8, color=colour)
    axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
    axes.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths])
    axes.tick_params(length=0)
