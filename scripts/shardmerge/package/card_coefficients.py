"""What a merged model is made of, in the words and tables of its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardmerge.algebra.call_terms import setting_of
from shardmerge.base.markdown import code, table
from shardmerge.base.text import number, plural, ranges
from shardmerge.plan.description import BuildDescription
from shardmerge.recipe.naming import short_public_names, shortener
from shardmerge.report.coefficients import Coefficients, Spread, coefficients
from shardmerge.report.summary import Line, summarize

#: Modules that a column of the table names before it only counts the rest.
_NAMED = 8


def describe_coefficients(description: BuildDescription) -> str:
    """Return Markdown that tells what the tensors of a build are made of.

    Args:
        description: Of the build.
    """
    tensors = description.coefficients
    found, shorten = coefficients(tensors), shortener(short_public_names(description.sources))
    copied = _copied(tensors, [description.reference, *description.sources])
    told = sorted(summarize(found, shorten), key=lambda line: line.rest)
    lines = [f"- {_where(line, alone=len(told) == 1)}: {_formula(line.formula)}" for line in told]
    parts = [_sentence(copied, len(tensors), shorten)]
    if len(copied) > 1 or sum(copied.values()) < len(tensors):
        parts.append("\n".join(lines) + "\n")
    for term in found.parts:
        parts.append(_term(found, term, shorten))
    return "\n".join(part for part in parts if part)


def _formula(formula: str) -> str:
    """Return a formula as code, the parameters of its methods beside it."""
    formula, semicolon, parameters = formula.partition("; parameters")
    return code(formula) + (f", parameters{parameters}" if semicolon else "")


def _copied(tensors: Mapping[str, Any], models: list[str]) -> dict[str, int]:
    """Return how many tensors are those of each model, for the models that have some."""
    counts = dict.fromkeys(models, 0)
    for terms in tensors.values():
        if len(terms) == 1 and terms[0][1] == 1.0 and terms[0][0] in counts:
            counts[terms[0][0]] += 1
    return {model: count for model, count in counts.items() if count}


def _sentence(copied: Mapping[str, int], total: int, shorten: Callable[[str], str]) -> str:
    rest = total - sum(copied.values())
    if not copied:
        return f"All {plural(total, 'tensor')} are computed:\n"
    if len(copied) == 1 and not rest:
        return f"Every tensor is that of {code(shorten(next(iter(copied))))}.\n"
    counts = [f"{count:,} those of {code(shorten(model))}" for model, count in copied.items()]
    counts[0] = counts[0].replace(" those", f" of {plural(total, 'tensor')} are those", 1)
    end = f"; the other {rest:,} are computed:\n" if rest else ":\n"
    return ", ".join(counts) + end


def _where(line: Line, *, alone: bool) -> str:
    if line.rest:
        return "every tensor" if alone else "everything else"
    names = _names(line.modules)
    if not line.layers:
        return names
    return f"{'layer' if line.layers.isdigit() else 'layers'} {line.layers}, {names}"


def _names(modules: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(code(module) for module in modules[:_NAMED])
    more = len(modules) - _NAMED
    return shown if more <= 0 else f"{shown} and {more} more"


def _term(found: Coefficients, term: str, shorten: Callable[[str], str]) -> str:
    """Return a coefficient, or a method's parameter, in every layer and module.

    What is the same wherever it is says the formula.
    """
    setting = setting_of(term)
    of = {cell: terms[term] for cell, terms in found.cells.items() if term in terms}
    given = {_value(spread) for spread in of.values()}
    nothing, end = "0", " (0 where none is given)"
    if setting:
        if len(given) == 1:
            return ""
        nothing, end = "-", ""
        whose = f" of {code(shorten(setting.model))}" if setting.model else ""
        name = f"Parameter {code(setting.parameter)}{whose} in {code(shorten(setting.call))}"
    elif term.endswith(")") and given == {"1"} and setting_of(f"{term}: x"):
        return ""  # a method's result, as it is
    else:
        name = f"Coefficient of {code(shorten(term))}"
    values = {cell: _value(of[cell]) if cell in of else nothing for cell in found.cells}
    if len(set(values.values())) == 1:
        return f"{name}: {next(iter(values.values()))} in every tensor.\n"
    frame = found.frame
    columns: dict[tuple[str, ...], list[str]] = {}
    for module in frame.modules:
        column = tuple(values.get((module, layer), "") for layer in range(frame.layers))
        columns.setdefault(column, []).append(module)
    shown = {column: names for column, names in columns.items() if set(column) - {nothing, ""}}
    outside = [(row, values[row, None]) for row in frame.outside]
    parts = [f"{name}{end}:\n"]
    if shown:
        rows: list[tuple[list[int], tuple[str, ...]]] = []
        for layer, row in enumerate(zip(*shown, strict=True)):
            if rows and rows[-1][1] == row:
                rows[-1][0].append(layer)
            else:
                rows.append(([layer], row))
        header = ["layers", *map(_names, shown.values())]
        parts.append(table(header, [[ranges(n), *row] for n, row in rows], numbers=True))
    given = [f"{code(row)} {value}" for row, value in outside if value != nothing]
    if given:
        parts.append(f"Outside the layers: {', '.join(given)}.\n")
    return "\n".join(parts)


def _value(spread: Spread) -> str:
    if spread.varies:
        return f"{number(spread.low)} to {number(spread.high)}"
    return number(spread.mean)
