"""A model's coefficients in a few lines: runs of layers, modules with equal terms together."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shardmerge.algebra.call_terms import SettingTerm, declared, setting_of
from shardmerge.base.text import number, ranges
from shardmerge.report.coefficients import Coefficients, Spread

#: Names of coefficients that vary over a line's layers.
_FACTORS = "ghkmnpqrs"
_HARD_SPACE = "\u00a0"
_TOGETHER = re.compile(r"(\S+ \* )?\([^()]* - [^()]*\)|\S+ (?:\*|in) \S+")
_Terms = tuple[tuple[str, Spread], ...]


@dataclass(frozen=True)
class Line:
    """What some tensors are made of.

    Args:
        layers: Layer numbers such as ``0-7, 72-79``, or an empty text outside layers.
        modules: Labels of the rows.
        formula: Such as ``a + g * (b - c), g in 0.1..1``.
        rest: Whether it holds for all that no other line names.
    """

    layers: str
    modules: tuple[str, ...]
    formula: str
    rest: bool = False


def summarize(coefficients: Coefficients, shorten: Callable[[str], str]) -> list[Line]:
    """Return the lines that tell every tensor's terms, what holds for most of them last.

    Args:
        coefficients: Of a model.
        shorten: Writes models within a label by shorter names.
    """
    modules: dict[tuple[tuple[int, ...], tuple[_Terms, ...]], list[str]] = {}
    for row, layers, values in _runs(coefficients):
        modules.setdefault((layers, values), []).append(row)
    # Runs of one formula, before and after the merged layers say, share a line.
    layers_of: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    size: dict[str, int] = {}
    for (layers, values), rows in modules.items():
        formula = _formula(values, shorten)
        layers_of.setdefault((formula, tuple(rows)), []).extend(layers)
        size[formula] = size.get(formula, 0) + len(values) * len(rows)
    rest = max(size, key=lambda formula: size[formula] * (2 if _is_plain(formula) else 1))
    found = [
        Line(ranges(layers), rows, formula)
        for (formula, rows), layers in layers_of.items()
        if formula != rest
    ]
    return [*found, Line("", (), rest, rest=True)]


def cells_of(lines: Sequence[Line]) -> Iterator[tuple[str, str, str]]:
    """Give the lines as rows of a table: layers, modules, and what they are made of."""
    for line in lines:
        if line.rest:
            yield "", "everything else" if len(lines) > 1 else "every tensor", line.formula
        else:
            yield line.layers or "-", ", ".join(line.modules), line.formula


def write_lines(lines: list[Line], width: int) -> list[str]:
    """Return the lines as text of at most ``width`` columns where words allow it."""
    written = []
    for line in lines:
        if line.rest:
            where = "everything else" if len(lines) > 1 else "every tensor"
        else:
            layers = "layer" if line.layers.isdigit() else "layers"
            where = f"{layers} {line.layers}: " if line.layers else ""
            where += " ".join(line.modules)
        # No line ends within a product, a difference of two models, or a coefficient's range.
        formula = _TOGETHER.sub(lambda m: m[0].replace(" ", _HARD_SPACE), line.formula)
        text = f"{where} = {formula}"
        if len(text) <= width:
            written.append(text)
            continue
        written += textwrap.wrap(where, width, subsequent_indent="  ", break_long_words=False)
        written += textwrap.wrap(
            f"= {formula}", width, initial_indent="  ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return [line.replace(_HARD_SPACE, " ") for line in written]


def _runs(coefficients: Coefficients) -> list[tuple[str, tuple[int, ...], tuple[_Terms, ...]]]:
    """Return each row's runs of layers that have the same terms, with the values layer by layer."""
    runs: list[tuple[str, tuple[int, ...], tuple[_Terms, ...]]] = []
    frame, cells = coefficients.frame, coefficients.cells
    for row in frame.modules:
        layers: tuple[int, ...] = ()
        values: tuple[_Terms, ...] = ()
        for layer in (n for n in range(frame.layers) if (row, n) in cells):
            terms = tuple(cells[row, layer].items())
            if layers and (layers[-1] != layer - 1 or _names(values[-1]) != _names(terms)):
                runs.append((row, layers, values))
                layers, values = (), ()
            layers, values = (*layers, layer), (*values, terms)
        runs.append((row, layers, values))
    runs += [(row, (), (tuple(cells[row, None].items()),)) for row in frame.outside]
    return runs


def _names(terms: _Terms) -> tuple[str, ...]:
    return tuple(label for label, _ in terms)


def _formula(values: tuple[_Terms, ...], shorten: Callable[[str], str]) -> str:
    parts, notes = [], []
    names = iter(_FACTORS)
    settings: dict[str, dict[str, list[tuple[str | None, str]]]] = {}
    for position, term in enumerate(_names(values[0])):
        if setting := setting_of(term):
            told = _setting_value(setting, [layer[position][1] for layer in values])
            by_parameter = settings.setdefault(setting.call, {})
            by_parameter.setdefault(setting.parameter, []).append((setting.model, told))
            continue
        spreads = [layer[position][1] for layer in values]
        low, high = min(s.low for s in spreads), max(s.high for s in spreads)
        label = shorten(term)
        several = _is_difference(label)
        if Spread(low, low, high).varies:
            name = next(names, "c")
            notes.append(f"{name} in {number(low)}..{number(high)}")
            if any(s.varies for s in spreads):
                notes[-1] += " (experts differ)"
            factor = f"{name} * "
        else:
            factor = "" if low == 1 else f"{number(low)} * "
        parts.append(f"{factor}({label})" if several and (factor or parts) else factor + label)
    formula = ", ".join([" + ".join(parts).replace("+ -", "- "), *notes])
    for call, parameters in settings.items():
        of_call = "" if len(settings) == 1 else f" of {shorten(call)}"
        listed = ", ".join(_setting(name, rows, shorten) for name, rows in parameters.items())
        formula += f"; parameters{of_call}: {listed}"
    return formula


def _setting(name: str, rows: list[tuple[str | None, str]], shorten: Callable[[str], str]) -> str:
    """Return a parameter with its value, or with one for each model where they differ."""
    values = dict.fromkeys(value for _, value in rows)
    if len(values) == 1:
        return f"{name} {rows[0][1]}"
    return f"{name} " + " and ".join(f"{value} ({shorten(model or '')})" for model, value in rows)


def _setting_value(setting: SettingTerm, spreads: list[Spread]) -> str:
    """Return a parameter's value in some layers: a word, a number, or its range."""
    method = declared(setting.method)
    parameter = method.parameter(setting.parameter) if method else None
    low, high = min(s.low for s in spreads), max(s.high for s in spreads)
    if parameter and parameter.type is bool:
        return " or ".join(str(bool(v)).lower() for v in dict.fromkeys((low, high)))
    return f"{number(low)}..{number(high)}" if Spread(low, low, high).varies else number(low)


def _is_difference(label: str) -> bool:
    return " - " in label and not label.endswith(")")


def _is_plain(formula: str) -> bool:
    """Whether it is one model as it is."""
    return not any(sign in formula for sign in (" + ", " - ", " * ", "("))
