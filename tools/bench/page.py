"""The figures of measurements as a page's tables and a plot."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from shardmerge.base.markdown import table
from shardmerge.report.canvas import BLUE, FAINT, GREY, ORANGE, figure
from tools.bench import methods
from tools.bench.builds import BYTES, SNAKEMAKE, SYNCED

Runs = Mapping[str, Sequence[Mapping[str, float]]]
_BEGIN = "<!-- figures: begin (written by tools/bench) -->"
_END = "<!-- figures: end -->"
_OTHER = "mergekit-multi"
_START = "mergekit-multi --help"
_COPIES = ("cp -r", SYNCED)
#: What is no contestant of its own.
_PARTS = (_START, BYTES, SNAKEMAKE)
_PHASES = ("start", "read", "compute", "write", "hash")


def with_figures(text: str, results: Mapping[str, Any]) -> str:
    """Return a page with the tables between its markers made anew.

    Args:
        text: The page.
        results: What ``tools/bench`` wrote: ``builds``, ``methods`` and ``plans``.

    Raises:
        ValueError: If a marker is missing.
    """
    before, found, rest = text.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise ValueError("a marker of the figures is missing")
    parts = [
        part for size, runs in results.get("builds", {}).items() for part in _build(size, runs)
    ]
    measured = results.get("methods", {})
    for size in sorted(measured, key=methods.gigabytes):
        parts += [f"### Methods at {size}, medians", methods.methods_table(measured[size])]
    if measured:
        parts.append("![What merge jobs take against what is read and written](methods.svg)")
    parts += _plans(results.get("plans", {}))
    return f"{before}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{after}"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median of the pairs' ratios."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=False))


def draw(results: Mapping[str, Any], output: str | os.PathLike[str]) -> None:
    """Draw every run of every contestant with its median, a panel for each size."""
    builds = results["builds"]
    with figure(output, 1.0 + 1.9 * len(builds)) as drawing:
        panels = drawing.subplots(len(builds), 1, squeeze=False)[:, 0]
        for axes, (size, runs) in zip(panels, builds.items(), strict=True):
            names = [name for name in runs if name not in _PARTS][::-1]
            for place, name in enumerate(names):
                values = [row["seconds"] for row in runs[name]]
                colour = ORANGE if name == _OTHER else GREY if name in _COPIES else BLUE
                median = statistics.median(values)
                axes.barh(place, median, color=colour, height=0.62)
                axes.scatter(values, [place] * len(values), s=9, color=FAINT, zorder=3)
                axes.text(max(values), place, f"  {median:.1f} s", va="center", size=8)
            axes.set_yticks(range(len(names)), names)
            axes.set_title(f"{size}: seconds to the last byte of the model")
            axes.margins(x=0.12)
        drawing.tight_layout()


def _build(size: str, runs: Runs) -> list[str]:
    seconds = {name: [row["seconds"] for row in rows] for name, rows in runs.items()}
    rows = []
    for name, values in seconds.items():
        if name in _PARTS:
            continue
        faster = ratio(seconds[_OTHER], values) if _OTHER in seconds else float("nan")
        peak = max(row.get("job_peak_mb", row["peak_mb"]) for row in runs[name])
        label = f"`{name}`" if name in _COPIES else name
        spread = f"{min(values):.1f} - {max(values):.1f}"
        median = f"{statistics.median(values):.1f}"
        rows.append([label, median, spread, f"{faster:.1f}", f"{peak:,.0f}"])
    count = len(seconds["fused"])
    head = ["What", "Median, s", "All runs, s", f"Times as fast as {_OTHER}", "Peak, MB"]
    parts = [f"### Builds of {size}, {count} runs of each, in turn", table(head, rows)]
    rows = []
    for name, measured in runs.items():
        if "merge" not in measured[0]:
            continue
        merges = [row["merge"] for row in measured]
        row = [name, f"{statistics.median(merges):.1f}"]
        if _OTHER in seconds:
            work = [t - s for t, s in zip(seconds[_OTHER], seconds[_START], strict=True)]
            row.append(f"{ratio(work, merges):.1f}")
        row += [f"{ratio(seconds[name], merges):.1f}" for name in _COPIES if name in seconds]
        row += [f"{statistics.median(r[phase] for r in measured):.1f}" for phase in _PHASES]
        rows.append(row)
    head = ["Merge jobs alone", "Median, s"]
    head += [f"Times as fast as {_OTHER} less its start"] if _OTHER in seconds else []
    head += [f"As `{name}`" for name in _COPIES if name in seconds]
    head += [f"{phase}, s" for phase in _PHASES]
    return [*parts, table(head, rows), *_least(seconds)]


def _least(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a sentence on what no build can be faster than."""
    if not {BYTES, SNAKEMAKE} <= seconds.keys():
        return []
    both = [b + s for b, s in zip(seconds[BYTES], seconds[SNAKEMAKE], strict=True)]
    found = "Reading, hashing, writing and reading back the same bytes alone, "
    found += f"two shards at a time, took {statistics.median(seconds[BYTES]):.1f} s, "
    found += "and Snakemake until one trivial job was done "
    found += f"{statistics.median(seconds[SNAKEMAKE]):.1f} s. "
    if _OTHER in seconds:
        found += "One after the other they are "
        found += f"{ratio(seconds[_OTHER], both):.1f} times as fast as {_OTHER}."
    return [found.strip()]


def _plans(plans: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not plans:
        return []
    rows = [
        [name, f"{row['tensors']:,.0f}", f"{row['files']:.0f}"]
        + [f"{row[what]:.2f}" for what in ("plan", "again", "job", "dry run", "no-op")]
        for name, row in plans.items()
    ]
    head = ["Model", "Tensors of a source", "Files", "Plan, s", "Planned before, s"]
    head += ["A cluster job's own, s", "`snakemake -n` in all, s", "`snakemake` when done, s"]
    return ["### Plans", table(head, rows)]
