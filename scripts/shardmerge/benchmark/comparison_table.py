"""Results of several models with intervals and comparisons: data, and what to say of them."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shardmerge.base import forms
from shardmerge.base.text import plural
from shardmerge.benchmark import paired, scores
from shardmerge.benchmark.comparison import Comparer, Comparison
from shardmerge.benchmark.samples import load_answers

#: A task is small where no smaller difference than this can be told.
_COARSE = 0.1


def comparer(paths: Sequence[str | os.PathLike[str]]) -> Comparer:
    """Return what compares the models of benchmark results, whose samples lie beside them.

    Raises:
        UserError: If a file is damaged.
    """
    results = scores.load(paths)
    inside: dict[str, Sequence[str]] = {}
    files = defaultdict(list)
    for path, result in zip(paths, results, strict=True):
        files[result["model_name"]].append(path)
        inside |= result.get("group_subtasks", {})
    answers = {model: load_answers(found) for model, found in files.items()}
    return Comparer(scores.score_table(results), answers, inside)


def comparison_json(
    made: Comparer,
    comparisons: Sequence[Comparison],
    parents: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Return a table with intervals, comparisons and notes as JSON-able data.

    Args:
        made: From ``comparer``.
        comparisons: Its own.
        parents: Models with those that they are made from, whose answers may agree.
    """
    data = scores.table_json(made.table)
    keys = [(m, c) for m in made.table.models for c in made.table.columns]
    keys = [key for key in keys if key in made.table.cells]
    for record, key in zip(data["cells"], keys, strict=True):
        interval = made.interval(*key)
        record["low"], record["high"] = map(_rounded, interval) if interval else (None, None)
    data["comparisons"] = [_record(one) for one in comparisons]
    tested = [one for one in comparisons if one.found]
    data["agreements"] = [forms.written(one) for one in made.agreements(parents)]
    for one in data["agreements"]:
        one["kappa"] = None if one["kappa"] is None else _rounded(one["kappa"])
    data["small"], data["notes"] = _too_small(tested), _methods(tested)
    return data


def _record(one: Comparison) -> dict[str, Any]:
    found, column = one.found, one.column
    row: dict[str, Any] = {"model": one.model, "reference": one.reference, "label": column.label}
    row |= {"task": column.task, "metric": column.metric, "filter": column.filter}
    row |= {"headline": column.headline, "part_of": column.part_of}
    row |= {"higher_is_better": column.higher_is_better}
    for key in ("difference", "low", "high", "p"):
        row[key] = _rounded(getattr(found, key)) if found else None
    row["adjusted"] = None if one.adjusted is None else _rounded(one.adjusted)
    for key in ("test", "questions", "up", "down"):
        row[key] = getattr(found, key) if found else None
    return row | {"verdict": one.verdict, "notes": list(one.notes)}


def _methods(tested: Sequence[Comparison]) -> list[str]:
    """Return sentences on how models were compared."""
    if not tested:
        return []
    kinds = {one.found.test for one in tested if one.found}
    how = {
        "mcnemar": "McNemar's exact test (right or wrong answers)",
        "bootstrap": f"a bootstrap of pairs with {paired.RESAMPLES:,} draws (other values)",
    }
    used = " or ".join(how[kind] for kind in how if kind in kinds)
    asked = sum(one.column.headline for one in tested)
    told = (
        f"Models are compared on the same questions, by {used}. The p-values are corrected by "
        f"Holm's method for {plural(asked, 'comparison')}"
    )
    if asked < len(tested):
        told += ", and those of each group's parts for the parts"
    return [
        f"{told}. So the probability that even one mark is wrong is at most "
        f"{100 * paired.ALPHA:.0f} %. No mark does not mean that two models are equally good."
    ]


def _too_small(tested: Sequence[Comparison]) -> list[str]:
    """Return sentences on what has too few questions to tell models apart."""
    asked = [one for one in tested if one.column.headline]
    flips = paired.least_flips(len(asked))
    # the passages of a text are no answers that are right or wrong
    asked = [one for one in asked if one.column.higher_is_better is not False]
    sizes: dict[int, dict[str, None]] = {}
    for one in asked:
        sizes.setdefault(one.found.questions if one.found else 0, {})[one.column.task] = None
    small = {count: tasks for count, tasks in sizes.items() if flips > _COARSE * count}
    told = []
    if small and len(small) == len(sizes):
        marked = any(one.verdict != "unclear" for one in asked)
        what = "small differences" if marked else "which model is better"
        told.append(f"This table is too small to tell {what}.")
    return told + [_few(count, [*tasks], flips) for count, tasks in sorted(small.items())]


def _few(count: int, tasks: Sequence[str], flips: int) -> str:
    have, each = ("have", " each") if len(tasks) > 1 else ("has", "")
    text = f"{', '.join(tasks)} {have} only {plural(count, 'question')}{each}. "
    if flips > count:
        return text + "Whatever the answers are, no difference can be told from chance."
    return text + (
        f"A difference below {flips / count:.2f} cannot be told from chance: at least {flips} "
        "answers must change from wrong to right, and none back."
    )


def pairs_with(
    references: Mapping[str, str | None], models: Iterable[str]
) -> list[tuple[str, str]]:
    """Return each model with its reference, less those without one, or that are their own."""
    chosen = ((model, references.get(model)) for model in models)
    return [(model, other) for model, other in chosen if other and other != model]


def _rounded(value: float) -> float | None:
    """Return a number with six digits, since more may differ between processors."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
