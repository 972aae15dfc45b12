"""Answers to single questions, as lm-eval's samples beside a result tell them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.base.jsontext import parse_json

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Numbers = NDArray[numpy.float64]

#: A question: its number in the data set and hashes of its text and of the right answer.
Question = tuple[int, str, str]
#: What one question adds to a metric: a number, or a sum with its weight.
Addend = tuple[float, ...]
#: A task, a filter and a metric.
Series = tuple[str, str, str]


@dataclass(frozen=True)
class GivenAnswer:
    """An answer to a question, a text or the number of a choice, and whether it is right."""

    answer: str | int
    right: bool


@dataclass
class Answers:
    """A model's answers.

    Args:
        parts: Of each series, what each question adds.
        prompts: Hash of the prompt by task and question.
        given: What was answered, by task, filter and question; of right or wrong answers alone.
    """

    parts: dict[Series, dict[Question, Addend]] = field(default_factory=dict)
    prompts: dict[str, dict[Question, str]] = field(default_factory=dict)
    given: dict[tuple[str, str, Question], GivenAnswer] = field(default_factory=dict)


def samples_path(result: str | os.PathLike[str]) -> Path:
    """Return where the samples of a result lie."""
    return Path(result).with_suffix(".samples.jsonl")


def load_answers(results: Iterable[str | os.PathLike[str]]) -> Answers:
    """Return a model's answers in the samples beside results, of those that have some.

    Args:
        results: Files of one model.

    Raises:
        UserError: If a file is damaged.
    """
    answers = Answers()
    for path in map(samples_path, results):
        if not path.is_file():
            continue
        with open(path, encoding="utf-8", errors="strict") as lines:
            try:
                for number, line in enumerate(lines, 1):
                    _add(answers, parse_json(line, f"{path}, line {number}"))
            except (KeyError, TypeError, ValueError, AttributeError):
                hint = "Delete it and run the workflow again, which makes it anew."
                raise UserError("is not what a benchmark job writes", str(path), hint) from None
    return answers


def _add(answers: Answers, row: Mapping[str, Any]) -> None:
    question = (int(row["doc_id"]), str(row["doc_hash"]), str(row["target_hash"]))
    answers.prompts.setdefault(row["task"], {})[question] = str(row["prompt_hash"])
    for metric in row["metrics"]:
        part = _addend(row.get(metric))
        if part is not None:
            answers.parts.setdefault((row["task"], row["filter"], metric), {})[question] = part
    answer = _answer(row.get("filtered_resps"))
    right = [row[metric] for metric in row["metrics"] if row.get(metric) in (0, 1)]
    if answer is not None and right:
        key = (str(row["task"]), str(row["filter"]), question)
        answers.given[key] = GivenAnswer(answer, bool(right[0]))


def _answer(responses: Any) -> str | int | None:
    """Return the likeliest choice, or the text that a model wrote; None if it is neither."""
    if not isinstance(responses, list) or not responses:
        return None
    if isinstance(responses[0], str):
        return responses[0]
    if len(responses) > 1 and all(isinstance(one, list) and one for one in responses):
        return max(range(len(responses)), key=lambda i: float(responses[i][0]))
    return None


def _addend(value: Any) -> Addend | None:
    """Return what a question adds, None if it is no number."""
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(isinstance(number, (int, float)) for number in numbers):
        return None
    return tuple(map(float, numbers))


def mean_of(parts: Numbers, *, axis: int = -1) -> Numbers:
    """Return the mean over questions of parts of shape (1, questions)."""
    return parts[0].mean(axis)


def _perplexity(parts: Numbers, *, axis: int = -1) -> Numbers:
    import numpy

    return numpy.exp(-parts[0].mean(axis))


def _nats(parts: Numbers, *, axis: int = -1) -> Numbers:
    return -parts[0].sum(axis) / parts[1].sum(axis)


def _weighted_perplexity(parts: Numbers, *, axis: int = -1) -> Numbers:
    import numpy

    return numpy.exp(_nats(parts, axis=axis))


def _bits(parts: Numbers, *, axis: int = -1) -> Numbers:
    import numpy

    return _nats(parts, axis=axis) / numpy.log(2)


Aggregation = Callable[..., "Numbers"]
#: What makes one value of all questions, by the number of parts that each has; lm-eval's metrics
#: do not tell theirs, and one that gives the reported value is the right one.
_AGGREGATIONS: Mapping[int, tuple[Aggregation, ...]] = {
    1: (mean_of, _perplexity),
    2: (_weighted_perplexity, _bits),
}


def aggregation(tasks: Iterable[Numbers], value: float) -> tuple[bool, Aggregation] | None:
    """Return how the parts of all questions make a value, None if that is not known.

    Args:
        tasks: Of a group, or one: arrays of shape (parts, questions).
        value: What lm-eval reports.

    Returns:
        Whether all tasks' questions count alike (else the tasks do), and the function.
    """
    import numpy

    tasks = list(tasks)
    whole = numpy.concatenate(tasks, axis=1)
    for function in _AGGREGATIONS[len(whole)]:
        with numpy.errstate(all="ignore"):
            pooled, apart = function(whole), numpy.mean([function(task) for task in tasks])
        for alike, found in ((True, pooled), (False, apart)):
            if numpy.isclose(found, value, rtol=1e-6, atol=1e-9):
                return alike, function
    return None


def as_array(parts: Iterable[Addend]) -> Numbers:
    """Return parts of questions as an array of shape (parts, questions)."""
    import numpy

    return numpy.array(list(parts), dtype=numpy.float64).T
