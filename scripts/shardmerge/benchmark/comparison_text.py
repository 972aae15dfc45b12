"""Comparisons of models as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shardmerge.base import markdown
from shardmerge.benchmark.comparison import Flip

#: How a verdict is marked beside a score.
MARKS = {"better": " ▲", "worse": " ▼", "differs": " ≠"}
_LEGEND = (
    "Brackets: 95 % interval of a score, or of a difference. ▲ better and ▼ worse than the model "
    "that it is compared with."
)
_NOTHING = "-"
_ARROWS = {True: " ↑", False: " ↓", None: ""}
_KEYS = ("model", "task", "metric", "filter", "part_of", "value", "stderr", "low", "high")
_COMPARED = ("reference", "difference", "low", "high", "test", "p", "adjusted", "questions")
_COMPARED += ("up", "down", "verdict")

Row = Mapping[str, Any]


def comparison_csv(data: Row) -> str:
    """Return a line for each score with its comparison; columns of that begin with ``difference``.

    Args:
        data: From ``comparison_json``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["reference", "difference", *(f"difference_{k}" for k in _COMPARED[2:]), "notes"]
    writer.writerow([*_KEYS, *names])
    found = by_cell(data)
    for cell in data["cells"]:
        one = found.get((cell["model"], cell["label"]), {})
        told = [data["footnotes"][n - 1] for n in cell["notes"]] + list(one.get("notes", ()))
        writer.writerow(
            [*(cell[k] for k in _KEYS), *(one.get(k) for k in _COMPARED), " ".join(told)]
        )
    return text.getvalue()


def flips_csv(flips: Iterable[Flip]) -> str:
    """Return a line for each question that one model has right and its reference wrong."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["model", "reference", "task", "filter", "metric", "doc_id", "doc_hash", "change"]
    writer.writerow(header)
    for flip in flips:
        change = "gained" if flip.gained else "lost"
        writer.writerow([flip.model, flip.reference, *flip.series, *flip.question[:2], change])
    return text.getvalue()


def comparison_markdown(data: Row) -> str:
    """Return scores with intervals and marks, differences, and notes.

    Args:
        data: From ``comparison_json``.
    """
    asked = [cell for cell in data["cells"] if cell["headline"]]
    parts = [_table(*score_grid(data, asked))]
    groups = dict.fromkeys(c["part_of"] for c in data["cells"] if not c["headline"])
    for group in groups:
        inner = [cell for cell in data["cells"] if cell["part_of"] == group]
        parts.append(f"In {_plain(group)}:\n\n" + _table(*score_grid(data, inner)))
    rows = [difference_row(one) for one in data["comparisons"] if one["headline"]]
    if rows:
        parts.append("Differences:\n\n" + _table(DIFFERENCES, rows))
    told = [_LEGEND, *data["notes"]]
    told += [f"[{i}] {note}" for i, note in enumerate(data["footnotes"], 1)]
    return "\n".join([*parts, *(f"{_plain(line)}\n" for line in told)])


#: Header of a table of differences.
DIFFERENCES = ("task", "model", "compared with", "difference", "answers", "p", "verdict")


def score_grid(data: Row, cells: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return scores with intervals and marks; tasks stand across where they are fewer than models.

    Returns:
        The header, and the rows.
    """
    found = by_cell(data)
    lines: dict[str, dict[str, str]] = {}
    for cell in cells:
        label = cell["label"] + _ARROWS[cell["higher_is_better"]]
        verdict = found.get((cell["model"], cell["label"]), {}).get("verdict")
        notes = "".join(f" [{n}]" for n in cell["notes"])
        text = value_text(cell["value"], cell["low"], cell["high"]) + MARKS.get(verdict, "")
        lines.setdefault(label, {})[cell["model"]] = text + notes
    models = data["models"]
    if len(lines) < len(models):
        rows = [[m, *(row.get(m, _NOTHING) for row in lines.values())] for m in models]
        return ["model", *lines], rows
    rows = [[label, *(row.get(m, _NOTHING) for m in models)] for label, row in lines.items()]
    return ["task", *models], rows


def difference_row(one: Row) -> list[str]:
    """Return the cells of a comparison, as ``DIFFERENCES`` names them."""
    row = [one["label"] + _ARROWS[one["higher_is_better"]], one["model"], one["reference"]]
    notes = "; ".join(one["notes"])
    if one["test"] is None:
        return [*row, _NOTHING, _NOTHING, _NOTHING, notes]
    difference = value_text(one["difference"], one["low"], one["high"], "+")
    verdict = one["verdict"] if one["verdict"] != "unclear" else "not clear"
    answers = answers_text(one)
    return [*row, difference, answers, p_text(one["adjusted"]), "; ".join([verdict, *one["notes"]])]


def answers_text(one: Row) -> str:
    """Return how many answers differ: those won and lost, or those that are higher and lower."""
    if one["test"] == "mcnemar":
        return f"{one['up']:,} won, {one['down']:,} lost of {one['questions']:,}"
    return f"{one['up']:,} higher, {one['down']:,} lower of {one['questions']:,}"


def value_text(value: Any, low: Any, high: Any, sign: str = "") -> str:
    """Return a value with its interval, where it has one."""
    if not isinstance(value, (int, float)):
        return str(value)
    digits = 3 if abs(value) < 10 else 2
    ends = [f"{end:{sign}.{digits}f}" for end in (low, high) if isinstance(end, (int, float))]
    interval = f" [{ends[0]}, {ends[1]}]" if len(ends) == 2 else ""
    return f"{value:{sign}.{digits}f}{interval}"


def p_text(p: float) -> str:
    """Return a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def by_cell(data: Row) -> dict[tuple[str, str], Row]:
    """Return the first comparison of each model and label."""
    found: dict[tuple[str, str], Row] = {}
    for one in data["comparisons"]:
        found.setdefault((one["model"], one["label"]), one)
    return found


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown.table(list(map(_plain, header)), [list(map(_plain, r)) for r in rows], True)


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\")
