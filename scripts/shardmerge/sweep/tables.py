"""A sweep's results written down: tables, all trials as data, the best recipe with its evidence."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shardmerge.base import forms, markdown
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json
from shardmerge.base.forms import FormError
from shardmerge.base.sealed import AGAIN
from shardmerge.base.text import plural
from shardmerge.benchmark.probe_units import unit_of
from shardmerge.benchmark.trials import Measurement, Trial, TrialSet
from shardmerge.sweep.evidence import Verdicts
from shardmerge.sweep.outcome import evidence, report_lines
from shardmerge.sweep.sweeps import TUNED, Sweep

#: Measured models that are no trials, for comparison.
References = Mapping[str, Mapping[str, Measurement]]
_FEW = 100


def table_data(
    sweep: Sweep,
    points: TrialSet,
    best: Sequence[str],
    references: References,
    found: Verdicts,
) -> dict[str, Any]:
    """Return all that a sweep's table knows, as JSON-able data.

    Args:
        sweep: The sweep.
        points: Its trials.
        best: Names of the best, the first one the first.
        references: Measured models that are no trials, by name.
        found: How trials compare with the first of the best.
    """
    values = {candidate.name: dict(candidate.values) for candidate in sweep.candidates}
    rows = [
        _row(trial, values[trial.name], best) | {"verdicts": found.get(trial.name, {})}
        for trial in points.trials
    ]
    others = [
        {"model": name, "metrics": {label: forms.written(m) for label, m in metrics.items()}}
        for name, metrics in references.items()
    ]
    return {
        "sweep": sweep.name,
        "recipe": sweep.recipe,
        "objectives": dict(sweep.objectives),
        "weights": dict(sweep.weights),
        "constraints": dict(sweep.constraints),
        "best": list(best),
        "trials": rows,
        "references": others,
    }


def _row(trial: Trial, values: Any, best: Sequence[str]) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "variables": values,
        "metrics": {label: forms.written(m) for label, m in trial.metrics.items()},
        "status": trial.status,
        "fulfils": trial.may_be_best,
        "best": trial.name in best,
    }


def load_points(path: str | os.PathLike[str]) -> TrialSet:
    """Return the trials in trials.json.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return forms.read(TrialSet, load_json(path))
    except FormError as error:
        raise UserError(f"is damaged: {error}", str(path), AGAIN) from None


def table_csv(data: Mapping[str, Any]) -> str:
    """Return a table's trials as CSV, numbers in full."""
    names = _variables(data)
    labels = _labels(data, all_of_them=True)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spread = [part for label in labels for part in (label, f"{label} stderr", f"{label} questions")]
    writer.writerow(["trial", *names, *spread, "status", "fulfils", "best"])
    for row in data["trials"]:
        cells = [_text(row["variables"][name]) for name in names]
        for label in labels:
            cell = row["metrics"].get(label, {})
            cells += [_text(cell.get(key, "")) for key in ("value", "stderr", "questions")]
        writer.writerow([row["trial"], *cells, row["status"], row["fulfils"], row["best"]])
    return out.getvalue()


def table_markdown(data: Mapping[str, Any]) -> str:
    """Return a table for people: variables, what the sweep aims at, the best in bold."""
    names, labels = _variables(data), _labels(data)
    header = ["trial", *names, *labels]
    rows = []
    for row in data["trials"]:
        cells = [_judged(row, label) for label in labels]
        values = [_text(row["variables"][name]) for name in names]
        mark = "**" if row["best"] else ""
        first = f"{mark}{row['trial']}{mark}{_standing(row)}"
        rows.append([first, *values, *cells])
    for other in data["references"]:
        cells = [_score(other["metrics"].get(label)) for label in labels]
        rows.append([other["model"], *("" for _ in names), *cells])
    lines = [markdown.table(header, rows, numbers=True), *_notes(data, labels)]
    if further := list(report_lines(data)):
        lines += ["", *further]
    return "".join(f"{line}\n" for line in lines)


def _notes(data: Mapping[str, Any], labels: Sequence[str]) -> Iterator[str]:
    aims = ", ".join(f"{word} {label}" for label, word in data["objectives"].items())
    if data["weights"]:
        parts = " + ".join(f"{weight:g} * {label}" for label, weight in data["weights"].items())
        aims += f" = {parts}"
    yield f"Aim: {aims}. Scores with their standard errors."
    if data["constraints"]:
        bounds = ", ".join(f"{label} {bound}" for label, bound in data["constraints"].items())
        yield f"Excluded: trials that do not have {bounds}."
    if any(row["status"] == "stopped" for row in data["trials"]):
        yield "Stopped: trials that few questions showed to be worse, or beyond a bound."
    if any(row["status"] == "failed" for row in data["trials"]):
        yield "Failed: trials that could not be built or measured. Their logs tell why."
    if data["best"]:
        count = len(data["best"])
        what = "no other trial beats it" if count == 1 else "no other trial beats one of these"
        yield f"Bold: {what}. Trial {data['best'][0]} balances the objectives and is in best.yaml."
        yield f"`better`, `worse`: than trial {data['best'][0]}, by a paired test on the same"
        yield "questions that is corrected for the number of trials. Without such a word the"
        yield "difference may be chance."
    else:
        yield "No trial fulfils the constraints, so that there is no best one."
    asked = [
        (row["metrics"][label].get("questions"), label)
        for row in data["trials"]
        for label in labels
        if label in row["metrics"]
    ]
    if few := [one for one in asked if one[0] and one[0] < _FEW]:
        count, label = min(few)
        told = plural(count, unit_of(label.partition("/")[0], {}))
        yield f"{told} tell little: most differences are chance."


def best_recipe(sweep: Sweep, data: Mapping[str, Any]) -> str:
    """Return the recipe of the first of the best trials, with what speaks for it as a comment."""
    if not data["best"]:
        return "# No trial fulfils the constraints.\n"
    name = data["best"][0]
    candidate = next(c for c in sweep.candidates if c.name == name)
    row = next(row for row in data["trials"] if row["trial"] == name)
    lines = [f"Trial {name} of the sweep {sweep.name}, {plural(len(data['trials']), 'trial')}."]
    if sweep.split:
        lines.append(f"Chosen by the {TUNED}-numbered questions of each task.")
    lines += [f"{key} = {json.dumps(value)}" for key, value in candidate.values.items()]
    lines += [f"{label}: {_score(row['metrics'].get(label))}" for label in _labels(data)]
    lines += evidence(data)
    if len(data["best"]) > 1:
        lines.append(f"As good in another way: {', '.join(data['best'][1:])}.")
    return "".join(f"# {line}\n" for line in lines) + candidate.text


def _variables(data: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in data["trials"] for name in row["variables"]))


def _labels(data: Mapping[str, Any], *, all_of_them: bool = False) -> list[str]:
    labels = [*data["objectives"], *data["weights"], *data["constraints"]]
    if all_of_them:
        labels += [label for row in data["trials"] for label in row["metrics"]]
    return list(dict.fromkeys(labels))


def _standing(row: Mapping[str, Any]) -> str:
    """Return why a trial cannot be the best, in a word."""
    if row["fulfils"]:
        return ""
    return f" ({row['status'] if row['status'] in ('failed', 'stopped') else 'excluded'})"


def _judged(row: Mapping[str, Any], label: str) -> str:
    """Return a trial's score, with a word where it is surely not that of the best trial."""
    verdict = row["verdicts"].get(label)
    word = f" {verdict}" if verdict in ("better", "worse") else ""
    return f"{_score(row['metrics'].get(label))}{word}"


def _score(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    error = f" ± {cell['stderr']:.3f}" if cell.get("stderr") is not None else ""
    return f"{cell['value']:.3f}{error}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
