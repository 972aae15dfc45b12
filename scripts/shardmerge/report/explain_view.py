"""An explanation as a terminal table: bars of each term's coefficient over the layers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from string import ascii_uppercase

from shardmerge.algebra.coefficients import NOTHING
from shardmerge.base.text import number, ranges
from shardmerge.recipe.naming import short_names, shortener
from shardmerge.report.coefficients import Coefficients, Spread
from shardmerge.report.explain import Explanation
from shardmerge.report.stack_view import stack_lines
from shardmerge.report.summary import summarize, write_lines
from shardmerge.report.terminal import Terminal

#: Columns of a bar, and the least that says something.
_BAR, _SHORT = 12, 4

_Layers = tuple[tuple["int | None", Mapping[str, Spread]], ...]


def explanation_text(explanation: Explanation, terminal: Terminal) -> str:
    """Return an explanation as text: for each model a summary, then a table of its layers for each
    group of modules that are made of the same.
    """
    shorten = shortener(short_names(explanation.sources))
    lines = _wrap(explanation.basis, terminal.width)
    for sentence in explanation.tokens:
        lines += _wrap(sentence, terminal.width)
    for warning in explanation.warnings:
        lines += _wrap(f"warning: {warning}", terminal.width)
    methods = dict(explanation.stages)
    others = [f"{s} ({m})" for s, m in explanation.stages if s not in explanation.models]
    through = f", through {', '.join(others)}" if others else ""
    for name, found in explanation.models.items():
        how = _wrap(methods[name] + through, terminal.width - 2)
        lines += ["", terminal.bold(name), *(f"  {terminal.dim(line)}" for line in how)]
        lines += [
            f"  {line}" for line in write_lines(summarize(found, shorten), terminal.width - 2)
        ]
        lines += stack_lines(explanation.stacks[name], shorten, terminal)
        if len({tuple(terms.items()) for terms in found.cells.values()}) == 1:
            continue  # the formula tells all
        shown = tuple(term for term in found.terms if term in found.parts or term == NOTHING)
        letters = dict(zip(shown, _letters(len(shown)), strict=True))
        lines += ["", *(f"  {letter} = {shorten(term)}" for term, letter in letters.items())]
        for rows, layers in _groups(found):
            title = _wrap(" ".join(rows), terminal.width - 2)
            lines += ["", *(f"  {terminal.bold(line)}" for line in title)]
            lines += _table(layers, letters, found.frame.layers, terminal)
    return "\n".join(lines) + "\n"


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def _letters(count: int) -> list[str]:
    if count <= len(ascii_uppercase):
        return list(ascii_uppercase[:count])
    return [f"T{i + 1}" for i in range(count)]


def _groups(found: Coefficients) -> list[tuple[list[str], _Layers]]:
    """Return the rows that have equal terms in all layers, with the terms of every layer."""
    frame, cells = found.frame, found.cells
    columns = [(row, n) for row in frame.modules for n in range(frame.layers)]
    columns += [(row, None) for row in frame.outside]
    rows: dict[tuple[str, bool], list[tuple[int | None, Mapping[str, Spread]]]] = {}
    for row, layer in columns:
        if (row, layer) in cells:
            rows.setdefault((row, layer is None), []).append((layer, cells[row, layer]))
    groups: dict[tuple, tuple[list[str], _Layers]] = {}
    for (row, _), layers in rows.items():
        key = tuple((layer, tuple(terms.items())) for layer, terms in layers)
        groups.setdefault(key, ([], tuple(layers)))[0].append(row)
    return list(groups.values())


def _table(
    layers: _Layers, letters: Mapping[str, str], count: int, terminal: Terminal
) -> list[str]:
    """Return a line for each run of layers with equal values: a number and a bar for each term."""
    runs: list[tuple[list[int | None], Mapping[str, Spread]]] = []
    for layer, values in layers:
        if runs and runs[-1][1] == values:
            runs[-1][0].append(layer)
        else:
            runs.append(([layer], values))
    used = [term for term in letters if any(term in values for _, values in runs)]
    largest = max(abs(s.mean) for _, values in runs for s in values.values()) or 1.0
    first = max(len("layers"), len(f"{count - 1}-{count - 1}"))
    digits = max(len(_value(s)) for _, values in runs for s in values.values())
    bar = min(_BAR, (terminal.width - 6 - first) // len(used) - digits - 4)
    bar = bar if bar >= _SHORT else 0
    lines = []
    cells = "".join(letters[t].ljust(digits + bar + 4) for t in used)
    lines.append(terminal.dim(f"    {'layers'.ljust(first)}  {cells}".rstrip()))
    for numbers, values in runs:
        where = "-" if numbers[0] is None else ranges(n for n in numbers if n is not None)
        text = f"    {where.ljust(first)}  "
        for term in used:
            spread = values.get(term)
            drawn = terminal.bar(abs(spread.mean) / largest, bar) if spread else " " * bar
            text += f"{_value(spread).ljust(digits)} {drawn}   "
        lines.append(text.rstrip())
    return lines


def _value(spread: Spread | None) -> str:
    if spread is None:
        return "."
    if spread.varies:
        return f"{number(spread.low)}..{number(spread.high)}"
    return number(spread.mean)
