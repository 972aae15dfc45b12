"""The benchmark table as CSV, as Markdown and as text for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from shardmerge.base import markdown
from shardmerge.base.text import plural
from shardmerge.benchmark.probe_units import unit_of
from shardmerge.benchmark.scores import Column, ScoreCell, ScoreTable

_NOTHING = "-"
#: Columns of values that a table has before it is turned, a row for each of them.
_ACROSS = 8

_Grid = tuple[list[str], list[list[str]]]


def to_csv(table: ScoreTable) -> str:
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


def to_markdown(table: ScoreTable) -> str:
    """Return what was asked for as Markdown, then each group's parts, a caption, footnotes."""
    parts = [_markdown(_grid(table))]
    for group in _groups(table):
        parts.append(f"In {_escape(group)}:\n\n" + _markdown(_grid(table, group)))
    notes = [f"[{i}] {note}\n" for i, note in enumerate(table.footnotes, 1)]
    return "\n".join([*parts, f"{_escape(caption(table))}\n", *notes])


def to_terminal(table: ScoreTable) -> str:
    """Return the same with columns aligned."""
    parts = [_terminal(_grid(table))]
    for group in _groups(table):
        parts.append(f"\nIn {group}:\n{_terminal(_grid(table, group))}")
    notes = [f"[{i}] {note}\n" for i, note in enumerate(table.footnotes, 1)]
    return "".join([*parts, f"\n{caption(table)}\n", *notes])


def caption(table: ScoreTable) -> str:
    """Return what the numbers of a table are: the harness, questions, examples in the prompt."""
    cells = [table.cells[key] for key in table.cells]
    tools = [f"lm-eval {v}" for v in _values(cells, "lm_eval")]
    tools += [f"transformers {v}" for v in _values(cells, "transformers")]
    types = _values(cells, "dtype")
    computed = f", computed in {' or '.join(types)}" if types else ""
    tasks = {c.task: _asked(table, c.task) for c in table.columns if c.headline}
    told = dict.fromkeys(asked for asked in tasks.values() if asked)
    counts = []
    for asked in told:
        names = ", ".join(task for task, other in tasks.items() if other == asked)
        which = names if len(told) > 1 else "Each task" if len(tasks) > 1 else ""
        counts.append(f"{which}: {asked}" if which else asked)
    sentences = [f"Measured with {', '.join(tools) or 'lm-eval'}{computed}"]
    sentences += ["; ".join(counts)] if counts else []
    if any(cell.stderr is not None for cell in cells):
        sentences.append("± is one standard error")
    return ". ".join(sentences) + "."


def _asked(table: ScoreTable, task: str) -> str:
    """Return how many questions or passages a task has, and how many examples the prompt."""
    questions: dict[str, int] = {}
    shots: dict[str, None] = {}
    limits: dict[str, None] = {}
    leaves = [c for c in table.columns if task in (c.task, c.part_of)]
    for column in leaves:
        for cell in _cells(table, [column]):
            if cell.samples:
                questions[column.task] = max(cell.samples, questions.get(column.task, 0))
                limits |= dict.fromkeys(_values([cell], "limit"))
            if column.task in questions or len(leaves) == 1:
                shots |= dict.fromkeys(_values([cell], "num_fewshot"))
    unit = next((unit_of(task, c.settings) for c in _cells(table, leaves) if c.samples), "question")
    # parts of a probe read the same passages
    count = max if unit == "passage" else sum
    parts = [plural(count(questions.values()), unit)] if questions else []
    if limits and parts:
        parts[0] += f" (limit {' or '.join(limits)})"
    return ", ".join([*parts, *([f"{' or '.join(shots)}-shot"] if shots else [])])


def _cells(table: ScoreTable, columns: Iterable[Column]) -> Iterator[ScoreCell]:
    keys = ((model, column) for column in columns for model in table.models)
    return (table.cells[key] for key in keys if key in table.cells)


def _values(cells: Iterable[ScoreCell], key: str) -> list[str]:
    """Return a setting's values in the order in which they are met."""
    found = (cell.settings.get(key) for cell in cells)
    return list(dict.fromkeys(str(value) for value in found if value is not None))


def _groups(table: ScoreTable) -> list[str]:
    return list(dict.fromkeys(c.part_of for c in table.columns if c.part_of is not None))


def _grid(table: ScoreTable, group: str | None = None) -> _Grid:
    """Return what was asked for, or a group's parts: few columns stand beside each other."""
    columns = [column for column in table.columns if column.part_of == group]
    if group is None and len(columns) <= _ACROSS:
        header = ["model", *map(_heading, columns)]
        return header, [[m, *(_value(table.cells, m, c) for c in columns)] for m in table.models]
    rows = [[_heading(c), *(_value(table.cells, m, c) for m in table.models)] for c in columns]
    return ["task", *table.models], rows


def _heading(column: Column) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    return column.label + arrow


def _value(cells: Mapping[tuple[str, Column], ScoreCell], model: str, column: Column) -> str:
    cell = cells.get((model, column))
    if cell is None:
        return _NOTHING
    digits = 3 if abs(cell.value) < 10 else 2
    error = f" ± {cell.stderr:.{digits}f}" if cell.stderr is not None else ""
    return f"{cell.value:.{digits}f}{error}" + "".join(f" [{note}]" for note in cell.notes)


def _markdown(grid: _Grid) -> str:
    header, rows = grid
    return markdown.table(_plain(header), map(_plain, rows), numbers=True)


def _terminal(grid: _Grid) -> str:
    header, rows = grid
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_aligned(line, widths) for line in (header, *rows)]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(line, widths, strict=True)
    cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "  ".join(cells).rstrip()


def _escape(text: str) -> str:
    return _plain([text])[0].replace("|", "\\|")


def _plain(cells: Iterable[str]) -> list[str]:
    """Return cells whose backslashes stay what they are; a table's lines are seen to elsewhere."""
    return [cell.replace("\\", "\\\\") for cell in cells]
