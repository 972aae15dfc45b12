"""Comparisons of models as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields

from shardmerge.base import markdown
from shardmerge.benchmark.agreement import Agreement
from shardmerge.benchmark.comparison import Flip
from shardmerge.benchmark.comparison_rows import MARKS, Difference, ScoreRow, Scores

#: What the marks and brackets of a table are.
LEGEND = (
    "Brackets: 95 % interval of a score, or of a difference. ▲ better and ▼ worse than the model "
    "that it is compared with."
)
#: Header of a table of differences.
DIFFERENCES = ("task", "model", "compared with", "difference", "answers", "p", "verdict")
#: Header of a table of agreements, and what it means.
AGREEMENTS = ("task", "model", "parent", "same answer", "both right", "both wrong, same", "kappa")
ABOUT_AGREEMENT = (
    "Agreement: the share of questions with the same answer, of those that both have right, and "
    "of those where both make the same mistake. Cohen's kappa of right and wrong: 1 if two models "
    "are right on the same questions, 0 if no more often than chance."
)
_SCORE = ("model", "label", "part_of", "value", "stderr", "low", "high")
_NOTHING = "-"


def comparison_csv(scores: Scores) -> str:
    """Return a line for each score with its comparison, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    compared = [f.name for f in fields(Difference)]
    compared = [name for name in compared if name not in (*_SCORE, "headline", "notes")]
    compared += ["low", "high"]
    names = [n if n in ("reference", "difference") else f"difference_{n}" for n in compared]
    writer.writerow([*_SCORE, *names, "notes"])
    found = scores.first()
    for cell in scores.cells:
        one = found.get((cell.model, cell.label))
        told = [scores.footnotes[n - 1] for n in cell.notes] + list(one.notes if one else ())
        values = [getattr(one, name, None) for name in compared]
        writer.writerow([*(getattr(cell, name) for name in _SCORE), *values, " ".join(told)])
    return text.getvalue()


def flips_csv(flips: Iterable[Flip]) -> str:
    """Return a line for each question that one model has right and its reference wrong."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["model", "reference", "task", "filter", "metric", "doc_id", "doc_hash", "change"]
    writer.writerow(header)
    for flip in flips:
        change = "gained" if flip.gained else "lost"
        row = [flip.model, flip.reference, *flip.series, *flip.question[:2], change]
        writer.writerow(row)
    return text.getvalue()


def comparison_markdown(scores: Scores) -> str:
    """Return scores with intervals and marks, differences, and notes."""
    parts = [f"{_plain(line)}\n" for line in scores.small]
    parts += [_table(*score_grid(scores, [c for c in scores.cells if c.headline]))]
    for group in groups(scores):
        inner = [cell for cell in scores.cells if cell.part_of == group]
        parts.append(f"In {_plain(group)}:\n\n" + _table(*score_grid(scores, inner)))
    rows = [difference_row(one) for one in scores.comparisons if one.headline]
    if rows:
        parts.append("Differences:\n\n" + _table(DIFFERENCES, rows))
    if scores.agreements:
        parts.append(
            "Agreement with parents:\n\n"
            + _table(AGREEMENTS, map(agreement_row, scores.agreements))
        )
    told = [LEGEND, *scores.notes, *([ABOUT_AGREEMENT] if scores.agreements else [])]
    told += [f"[{i}] {note}" for i, note in enumerate(scores.footnotes, 1)]
    return "\n".join([*parts, *(f"{_plain(line)}\n" for line in told)])


def groups(scores: Scores) -> list[str]:
    """Return the groups whose parts have scores too."""
    return list(dict.fromkeys(c.part_of for c in scores.cells if c.part_of is not None))


def score_grid(scores: Scores, cells: Iterable[ScoreRow]) -> tuple[list[str], list[list[str]]]:
    """Return scores with intervals and marks; tasks stand across where they are fewer than models.

    Args:
        scores: All of them.
        cells: Those to show.

    Returns:
        The header, and the rows.
    """
    found = scores.first()
    lines: dict[str, dict[str, str]] = {}
    for cell in cells:
        one = found.get((cell.model, cell.label))
        mark = MARKS.get(one.verdict, "") if one else ""
        lines.setdefault(cell.heading, {})[cell.model] = cell.text + mark
    if len(lines) < len(scores.models):
        rows = [[m, *(row.get(m, _NOTHING) for row in lines.values())] for m in scores.models]
        return ["model", *lines], rows
    rows = [[key, *(row.get(m, _NOTHING) for m in scores.models)] for key, row in lines.items()]
    return ["task", *scores.models], rows


def difference_row(one: Difference) -> list[str]:
    """Return the cells of a comparison, as ``DIFFERENCES`` names them."""
    row = [one.heading, one.model, one.reference]
    return [*row, one.text, one.answers, one.p_text, one.told]


def agreement_row(one: Agreement) -> list[str]:
    """Return the cells of an agreement, as ``AGREEMENTS`` names them."""
    shares = [f"{count / one.questions:.3f}" for count in (one.same, one.right, one.wrong)]
    kappa = _NOTHING if one.kappa is None else f"{one.kappa:.2f}"
    return [one.task, one.model, one.other, *shares, kappa]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown.table(list(map(_plain, header)), [list(map(_plain, r)) for r in rows], True)


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\")
