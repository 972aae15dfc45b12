"""An explanation as a terminal table: bars of each term's coefficient over the layers."""

from __future__ import annotations

import textwrap

from shardmerge.report.coefficients import Coefficients, Spread
from shardmerge.report.explain import Explanation
from shardmerge.report.summary import summarize, write_lines
from shardmerge.report.terminal import Terminal
from shardmerge.report.words import number, ranges, shortener

_BAR = 10

_Values = tuple[tuple[str, Spread], ...]


def explanation_text(explanation: Explanation, terminal: Terminal) -> str:
    """Return the explanation as text: for each model a summary, then a table for each group of
    modules that have the same terms.
    """
    shorten = shortener(explanation.sources)
    lines = textwrap.wrap(explanation.basis, terminal.width)
    for warning in explanation.warnings:
        lines += textwrap.wrap(f"warning: {warning}", terminal.width, subsequent_indent="  ")
    methods = dict(explanation.stages)
    for name, found in explanation.models.items():
        others = [f"{s} ({m})" for s, m in explanation.stages if s not in explanation.models]
        through = f", through {', '.join(others)}" if others else ""
        lines += ["", terminal.bold(name) + terminal.dim(f"  {methods[name]}{through}")]
        lines += [f"  {line}" for line in write_lines(summarize(found, shorten), terminal.width - 2)]
        labels = {term: shorten(term) for term in found.terms}
        for rows, layers in _groups(found):
            lines += ["", *textwrap.wrap(
                " ".join(rows), terminal.width - 2, initial_indent="  ", subsequent_indent="  "
            )]  # fmt: skip
            lines += _table(layers, labels, found, terminal)
    return "\n".join(lines) + "\n"


def _groups(found: Coefficients) -> list[tuple[list[str], dict[int | None, _Values]]]:
    """Return the rows that have equal terms in all layers, with the terms of every layer."""
    groups: dict[tuple, list[str]] = {}
    frame = found.frame
    for row in frame.modules:
        layers = tuple(
            (n, tuple(found.cells[row, n].items()))
            for n in range(frame.layers)
            if (row, n) in found.cells
        )
        groups.setdefault(layers, []).append(row)
    for row in frame.outside:
        key = ((None, tuple(found.cells[row, None].items())),)
        groups.setdefault(key, []).append(row)
    return [(rows, dict(layers)) for layers, rows in groups.items()]


def _table(
    layers: dict[int | None, _Values],
    labels: dict[str, str],
    found: Coefficients,
    terminal: Terminal,
) -> list[str]:
    """Return lines: runs of layers with equal values, a bar and a number for each term."""
    runs: dict[_Values, list[int]] = {}
    spans: list[tuple[list[int | None], _Values]] = []
    for layer, values in layers.items():
        if spans and spans[-1][1] == values:
            spans[-1][0].append(layer)
        else:
            spans.append(([layer], values))
    runs.clear()
    terms = [t for t in found.terms if any(t in dict(values) for _, values in spans)]
    top = max((abs(s.high) for _, values in spans for _, s in values), default=1.0) or 1.0
    widest = max(len(labels[t]) for t in terms)
    lines = []
    if None not in layers:
        for term in terms:
            lines.append(f"    {labels[term].ljust(widest)}"[: terminal.width])
    return lines + [str(top)]
