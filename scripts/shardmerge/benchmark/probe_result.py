"""Results of probes in the shape of lm-eval's, so that tables, tests and sweeps read them alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardmerge.base.digest import digest
from shardmerge.benchmark.conditions import conditions, versions
from shardmerge.benchmark.harness import Evaluation
from shardmerge.benchmark.options import EvalOptions
from shardmerge.benchmark.plain import plain

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@dataclass
class ProbeFindings:
    """What a probe found, task by task.

    Args:
        values: Of each task each metric with its standard error.
        better: Whether a higher value is better; metrics that are not there have no better.
        parts: Tasks that belong to what was asked for, if there are some.
        rows: For each passage or needle what lm-eval writes of a question.
        settings: For a task and a metric, what else two models must share to be compared.
        notes: Sentences on what was not measured.
    """

    values: dict[str, dict[str, tuple[float, float | None]]] = field(default_factory=dict)
    better: dict[str, bool] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    settings: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def passage_row(
    task: str,
    number: int,
    asked: Sequence[Any],
    prompt: Any,
    metrics: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Return what is kept of a passage or needle, as lm-eval's samples have it.

    Args:
        task: Its task.
        number: Of it.
        asked: The question and the right answer, the same for all models.
        prompt: What tells apart how models were asked.
        metrics: What it adds to each metric.
        more: Other keys of lm-eval's.
    """
    question, target = map(digest, asked)
    return {
        "task": task,
        "doc_id": number,
        "doc_hash": question,
        "target_hash": target,
        "prompt_hash": digest(prompt),
        "filter": "none",
        "metrics": list(metrics),
        **metrics,
        **more,
    }


def evaluation(
    model: LM, name: str, probe: str, options: EvalOptions, found: ProbeFindings
) -> Evaluation:
    """Return a probe's result and its rows, as ``harness.save`` writes them.

    Args:
        model: That was probed.
        name: What it is called in the result.
        probe: Its name.
        options: As the model was loaded with.
        found: What was found.
    """
    tasks = list(found.values)
    told = versions(options.backend)
    del told["lm_eval_version"], told["datasets_version"]
    result: dict[str, Any] = {
        "model_name": name,
        "requested_task": probe,
        "results": {task: _metrics(task, values) for task, values in found.values.items()},
        "higher_is_better": {
            task: {metric: found.better.get(metric) for metric in values}
            for task, values in found.values.items()
        },
        "versions": dict.fromkeys(tasks, 1),
        "n-samples": {task: _count(found.rows, task) for task in tasks},
        "task_hashes": {task: _hash(found.rows, task) for task in tasks},
        **told,
        "config": conditions(model, options),
        "metric_settings": found.settings,
        "probe_notes": found.notes,
    }
    if found.parts:
        result["group_subtasks"] = {probe: found.parts}
    return Evaluation(plain(result), plain(found.rows))


def _metrics(task: str, values: Mapping[str, tuple[float, float | None]]) -> dict[str, Any]:
    made: dict[str, Any] = {"alias": task}
    for metric, (value, error) in values.items():
        made |= {
            f"{metric},none": value,
            f"{metric}_stderr,none": "N/A" if error is None else error,
        }
    return made


def _count(rows: Iterable[Mapping[str, Any]], task: str) -> dict[str, int]:
    count = sum(row["task"] == task for row in rows)
    return {"original": count, "effective": count} if count else {}


def _hash(rows: Iterable[Mapping[str, Any]], task: str) -> str:
    keys = ("doc_hash", "target_hash")
    return digest([[row[key] for key in keys] for row in rows if row["task"] == task])
