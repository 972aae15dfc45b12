"""One table of benchmark results: a row per model, a column per task and metric."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.files import load_json
from shardmerge.benchmark.options import options_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_LM_EVAL = "https://github.com/EleutherAI/lm-evaluation-harness"
_CARD_METRICS = {"acc": "accuracy", "acc_norm": "accuracy"}
#: What two models' results of one task must share to be compared, and how a footnote says it.
COMPARED = {
    "limit": "limit {}",
    "num_fewshot": "{} examples in the prompt",
    "dtype": "computed in {}",
    "seed": "seeds {}",
    "options": "options {}",
    "task_version": "version {} of the task",
    "lm_eval": "lm-eval {}",
    "transformers": "transformers {}",
    "torch": "torch {}",
    "questions": "questions of hash {}",
    "windows": "windows of {}",
    "tokens": "tokens of hash {}",
}


@dataclass(frozen=True)
class Column:
    """A metric of a task.

    Args:
        task: Task or group.
        metric: As lm-eval calls it, as ``acc``.
        filter: What lm-eval did to answers first, or ``none``.
        higher_is_better: None where the task does not say.
        part_of: The group that it is a part of, where that has a value of its own; None for what
            was asked for: a task, a group, or the tasks of a tag or of a group without a value.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    part_of: str | None = None

    @property
    def headline(self) -> bool:
        """Whether it is what was asked for."""
        return self.part_of is None

    @property
    def label(self) -> str:
        """``task/metric``, and the filter where there is one."""
        return f"{self.task}/{self.metric}" + ("" if self.filter == "none" else f",{self.filter}")


@dataclass(frozen=True)
class ScoreCell:
    """A model's value.

    Args:
        value: The metric.
        stderr: Its standard error, or None where there is none.
        samples: Questions that were asked, or None for a group.
        settings: What it must share with others to be compared, by the keys of footnotes.
        dataset: The data set's name on the Hub, or the task's where it is local.
        notes: Numbers of footnotes, from 1.
    """

    value: float
    stderr: float | None
    samples: int | None
    settings: Mapping[str, Any]
    dataset: str
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Results of several models.

    Args:
        models: Rows, in the order of the results.
        columns: In the order of the results.
        cells: By (model, column); a pair that was not measured is not there.
        footnotes: Sentences on cells that are not comparable with the others of their column, then
            on what was not measured.
    """

    models: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], ScoreCell]
    footnotes: tuple[str, ...]


def load(paths: Iterable[str | os.PathLike[str]]) -> list[Mapping[str, Any]]:
    """Return results that ``evaluation.save`` wrote.

    Raises:
        UserError: If a file is not one.
    """
    results = []
    for path in paths:
        result = load_json(path)
        if not {"model_name", "requested_task", "results", "config"} <= result.keys():
            raise UserError("is not a benchmark result", str(path))
        results.append(result)
    return results


def score_table(results: Sequence[Mapping[str, Any]]) -> ScoreTable:
    """Return the table of results, with a footnote wherever a column mixes settings.

    Args:
        results: As ``load`` gives them, one per model and requested task.

    Raises:
        UserError: If a model has two different results of one task.
    """
    roles: dict[str, str | None] = {}
    for result in results:
        for task, group in _roles(result).items():
            # what is asked for by name somewhere is no mere part
            roles[task] = group if roles.get(task, group) else None
    cells: dict[tuple[str, Column], ScoreCell] = {}
    for result in results:
        model = result["model_name"]
        for column, cell in _cells(result, roles):
            known = cells.get((model, column))
            if known and (known.value, known.settings) != (cell.value, cell.settings):
                raise UserError(f"model {model!r} has two results of {column.label}")
            cells[model, column] = known or cell
    models = tuple(dict.fromkeys(result["model_name"] for result in results))
    columns = tuple(dict.fromkeys(column for _, column in cells))
    cells, footnotes = _annotate(models, columns, cells)
    told = dict.fromkeys(note for result in results for note in result.get("probe_notes", ()))
    return ScoreTable(models, columns, cells, (*footnotes, *told))


def table_json(table: ScoreTable) -> dict[str, Any]:
    """Return all that a table knows as JSON-able data, a record per cell."""
    records = []
    for model, column in _order(table):
        cell = table.cells[model, column]
        row = {"model": model, "label": column.label, "headline": column.headline}
        row |= vars(column) | vars(cell)
        records.append(row | {"settings": dict(cell.settings), "notes": list(cell.notes)})
    return {"models": list(table.models), "cells": records, "footnotes": list(table.footnotes)}


def card_results(table: ScoreTable, model: str) -> list[EvalResult]:
    """Return a model's headline results for the front matter of its card.

    Args:
        table: From ``score_table``.
        model: One of its rows.

    Raises:
        UserError: If it is not in the table.
    """
    from huggingface_hub import EvalResult

    if model not in table.models:
        raise UserError(f"no results of a model {model!r}", hint=did_you_mean(model, table.models))
    results = []
    for row, column in _order(table):
        cell = table.cells[row, column]
        # what lm-eval did not measure stands in the tables alone
        if row == model and column.headline and cell.settings["lm_eval"] is not None:
            metric = f"{column.metric} ({column.filter})"
            arguments = {"num_few_shot": cell.settings["num_fewshot"]}
            if cell.settings["limit"] is not None:
                arguments["limit"] = cell.settings["limit"]
            results.append(
                EvalResult(
                    task_type="text-generation",
                    task_name="Text Generation",
                    dataset_type=cell.dataset,
                    dataset_name=column.task,
                    dataset_args=arguments,
                    metric_type=_CARD_METRICS.get(column.metric, column.metric),
                    metric_name=column.metric if column.filter == "none" else metric,
                    metric_value=round(cell.value, 4),
                    source_name=f"lm-evaluation-harness {cell.settings['lm_eval']}",
                    source_url=_LM_EVAL,
                )
            )
    return results


def _roles(result: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the group that each task or group of a result is a part of, None for what was asked.

    A group without a value of its own stands for what is in it, and a tag for all of its tasks.
    """
    rows, inside = result["results"], result.get("group_subtasks", {})
    asked = result["requested_task"]
    has_value = {task for task, metrics in rows.items() if any("," in key for key in metrics)}
    roles: dict[str, str | None] = {}
    todo: list[tuple[str, str | None]] = [(asked, None)]
    while todo:
        task, group = todo.pop()
        if task not in roles:
            roles[task] = group
            within = group or (task if task in has_value else None)
            todo += [(part, within) for part in inside.get(task, ())]
    whole = asked if asked in has_value else None
    return {task: roles.get(task, whole) for task in rows}


def _order(table: ScoreTable) -> list[tuple[str, Column]]:
    return [(m, c) for m in table.models for c in table.columns if (m, c) in table.cells]


def _cells(
    result: Mapping[str, Any], roles: Mapping[str, str | None]
) -> Iterable[tuple[Column, ScoreCell]]:
    config = result["config"]
    rows = result["results"]
    for task in sorted(rows, key=lambda task: (roles[task] is not None, task)):
        metrics = rows[task]
        settings = {
            "limit": config.get("limit"),
            "num_fewshot": result.get("n-shot", {}).get(task, config.get("num_fewshot")),
            "dtype": config.get("dtype"),
            "seed": ", ".join(str(config[k]) for k in sorted(config) if k.endswith("_seed")),
            "options": options_text(config),
            "task_version": result.get("versions", {}).get(task),
            "lm_eval": result.get("lm_eval_version"),
            "transformers": result.get("transformers_version"),
            "torch": result.get("torch_version"),
            "questions": result.get("task_hashes", {}).get(task, "")[:8],
        }
        samples = result.get("n-samples", {}).get(task, {}).get("effective")
        dataset = result.get("configs", {}).get(task, {}).get("dataset_path") or task
        better = result.get("higher_is_better", {}).get(task, {})
        more = result.get("metric_settings", {}).get(task, {})
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            column = Column(task, metric, chosen, better.get(metric), roles[task])
            own = settings | more.get(metric, {})
            error = stderr if _is_number(stderr) else None
            yield column, ScoreCell(value, error, samples, own, dataset)


def _annotate(
    models: Sequence[str],
    columns: Sequence[Column],
    cells: Mapping[tuple[str, Column], ScoreCell],
) -> tuple[dict[tuple[str, Column], ScoreCell], tuple[str, ...]]:
    """Return the cells with their footnotes: those whose settings are not their column's usual."""
    notes: dict[str, int] = {}
    marked = defaultdict(list)
    for column in columns:
        rows = [model for model in models if (model, column) in cells]
        usual = _usual([cells[model, column].settings for model in rows])
        for model in rows:
            settings = cells[model, column].settings
            odd = {key: value for key, value in settings.items() if value != usual[key]}
            if odd.keys() - {"questions"}:
                odd.pop("questions", None)  # they differ because something else does
            if odd:
                here = ", ".join(COMPARED[k].format(_text(v)) for k, v in odd.items())
                others = ", ".join(COMPARED[k].format(_text(usual[k])) for k in odd)
                text = f"{column.task} of {model}: {here}; others: {others}. Do not compare."
                marked[model, column].append(notes.setdefault(text, len(notes) + 1))
    annotated = {
        key: ScoreCell(**vars(cell) | {"notes": tuple(marked[key])}) if key in marked else cell
        for key, cell in cells.items()
    }
    return annotated, tuple(notes)


def _usual(settings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the settings that most rows have, of equally many those of the first."""
    counts = Counter(str(sorted(row.items(), key=str)) for row in settings)
    return max(settings, key=lambda row: counts[str(sorted(row.items(), key=str))])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
