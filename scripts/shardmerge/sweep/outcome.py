"""What a search came to: its best trial on questions it was not chosen by, and what mattered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardmerge.base import markdown
from shardmerge.base.text import plural
from shardmerge.benchmark.comparison_table import comparer, comparison_json
from shardmerge.benchmark.probe_units import unit_of
from shardmerge.sweep.sweeps import Sweep


def outcome(sweep: Sweep, best: Sequence[str], reported: Sequence[str]) -> dict[str, Any]:
    """Return what a search adds to a sweep's table, as JSON-able data; nothing of other sweeps.

    Args:
        sweep: The sweep.
        best: Names of the best trials, the first one the first.
        reported: Results on the other half of the questions.

    Raises:
        UserError: If a file is damaged.
    """
    found = sweep.searched
    if found is None:
        return {}
    data: dict[str, Any] = {
        "importances": {key: dict(shares) for key, shares in found.importances.items()}
    }
    if reported and best and sweep.report_label(best[0]) in _labels(sweep):
        made = comparer(reported)
        against = sweep.report_label(best[0])
        pairs = [(against, label) for label in made.table.models if label != against]
        data["report"] = comparison_json(made, made.compare(pairs))
        data["reported"] = _labels(sweep)
    return data


def _labels(sweep: Sweep) -> dict[str, str]:
    """Return the names of the trials that are reported by their labels."""
    return {sweep.report_label(c.name): c.name for c in sweep.reported}


def report_lines(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of Markdown on what a search came to.

    Args:
        data: A sweep's table with ``outcome``.
    """
    if data.get("report"):
        yield from _table(data)
    for label, shares in data.get("importances", {}).items():
        told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        yield f"Importances for {label} (PED-ANOVA): {told}."


def evidence(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the best trial's scores on the questions that it was not chosen by.

    Args:
        data: A sweep's table with ``outcome``.
    """
    report, names = data.get("report"), data.get("reported", {})
    if not report:
        return
    for cell in report["cells"]:
        if names[cell["model"]] == data["best"][0] and cell["headline"]:
            score = f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
            yield f"{cell['label']} on the questions that it was not chosen by: {score}."
    for row in report["comparisons"]:
        if row["headline"]:
            other, shown = names[row["reference"]], _difference(row)
            yield f"{row['label']}, difference to trial {other} there: {shown}."


def _table(data: Mapping[str, Any]) -> Iterator[str]:
    report, names, best = data["report"], data["reported"], data["best"][0]
    cells = [cell for cell in report["cells"] if cell["headline"]]
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    scores = {(names[cell["model"]], cell["label"]): cell for cell in cells}
    rows = []
    for trial in dict.fromkeys(names.values()):
        mark = f"**{trial}**" if trial == best else trial
        found = [scores[trial, label] for label in labels]
        rows.append([mark, *(f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in found)])
    yield "On the questions that no trial was chosen by, with 95 % intervals:"
    yield ""
    yield markdown.table(["trial", *labels], rows, numbers=True)
    for row in report["comparisons"]:
        if row["headline"]:
            yield f"{row['label']}: {best} less {names[row['reference']]} is {_difference(row)}."


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "untested"
    asked = plural(row["questions"], unit_of(row["task"], {}))
    return (
        f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], {row['verdict']} "
        f"(p {row['adjusted']:.2g}, {asked})"
    )
