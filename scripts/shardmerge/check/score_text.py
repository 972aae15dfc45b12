"""The benchmark table as CSV, as Markdown and as text for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from shardmerge.check.scores import Cell, Column, Table

_NOTHING = "-"


def to_csv(table: Table) -> str:
    """Return every column with its standard error beside it, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = [name for c in table.columns for name in (c.label, f"{c.label}_stderr")]
    writer.writerow(["model", *header, "notes"])
    for model in table.models:
        row: list[object] = [model]
        notes: dict[int, None] = {}
        for column in table.columns:
            cell = table.cells.get((model, column))
            row += [cell.value, cell.stderr] if cell else ["", ""]
            notes |= dict.fromkeys(cell.notes if cell else ())
        writer.writerow([*row, " ".join(table.footnotes[n - 1] for n in notes)])
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """Return the headline columns as a Markdown table with footnotes under it."""
    header, rows = _grid(table)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    text = "".join("| " + " | ".join(_escape(cell) for cell in line) + " |\n" for line in lines)
    return text + "".join(f"\n[{i}] {note}\n" for i, note in enumerate(table.footnotes, 1))


def to_terminal(table: Table) -> str:
    """Return the headline columns aligned, with footnotes under them."""
    header, rows = _grid(table)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_aligned(line, widths) for line in (header, *rows)]
    rule = "-" * max(map(len, lines))
    notes = [f"[{i}] {note}" for i, note in enumerate(table.footnotes, 1)]
    return "\n".join([lines[0], rule, *lines[1:], *notes]) + "\n"


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    columns = [column for column in table.columns if column.headline]
    header = ["model", *map(_heading, columns)]
    rows = [[m, *(_value(table.cells.get((m, c))) for c in columns)] for m in table.models]
    return header, rows


def _heading(column: Column) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    return column.label + arrow


def _value(cell: Cell | None) -> str:
    if cell is None:
        return _NOTHING
    digits = 3 if abs(cell.value) < 10 else 2
    error = f" ± {cell.stderr:.{digits}f}" if cell.stderr is not None else ""
    return f"{cell.value:.{digits}f}{error}" + "".join(f" [{note}]" for note in cell.notes)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(line, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  ".join(cells).rstrip()


def _escape(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")
