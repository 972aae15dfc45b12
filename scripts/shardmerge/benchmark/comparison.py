"""Which models differ on which tasks: paired tests on stored answers, corrected for many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardmerge.benchmark import paired
from shardmerge.benchmark.agreement import Agreement, agreements
from shardmerge.benchmark.paired import ALPHA, Paired
from shardmerge.benchmark.samples import (
    Answers,
    Question,
    Series,
    aggregation,
    as_array,
    mean_of,
)
from shardmerge.benchmark.scores import COMPARED, Column, ScoreTable

#: Values of right and wrong.
_BINARY = {0.0, 1.0}


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference, on one metric of one task.

    Args:
        model, reference: Labels of the table.
        column: The metric.
        found: What the test says, or None where there is no test.
        adjusted: Its p-value, corrected for the number of comparisons.
        verdict: ``better``, ``worse``, ``differs`` where the metric has no better, ``unclear``
            where a test does not tell, ``untested``.
        notes: What there is to say of it: why there is no test, which questions it is of.
    """

    model: str
    reference: str
    column: Column
    found: Paired | None
    adjusted: float | None
    verdict: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Flip:
    """A question that one of two models answers right and the other wrong."""

    model: str
    reference: str
    series: Series
    question: Question
    gained: bool


class _UntestedError(Exception):
    """Says why there is no test."""


@dataclass(frozen=True)
class Comparer:
    """Compares models.

    Args:
        table: Their scores.
        answers: Of each model.
        inside: Tasks in each group.
    """

    table: ScoreTable
    answers: Mapping[str, Answers]
    inside: Mapping[str, Sequence[str]]

    def compare(
        self, pairs: Iterable[tuple[str, str]], columns: Iterable[Column] | None = None
    ) -> list[Comparison]:
        """Return every pair's comparisons, in the order of the columns.

        What was asked for is one family of comparisons, and the parts of each group are another.

        Args:
            pairs: A model and its reference.
            columns: What is compared; all of the table if there are none.
        """
        cells, pairs = self.table.cells, list(pairs)
        rows = [
            (model, reference, column, *self._test(model, reference, column))
            for column in (self.table.columns if columns is None else columns)
            for model, reference in pairs
            if (model, column) in cells and (reference, column) in cells and self._asks(column)
        ]
        adjusted: list[float | None] = [None] * len(rows)
        for family in dict.fromkeys(row[2].part_of for row in rows):
            places = [i for i, row in enumerate(rows) if row[2].part_of == family]
            values = [rows[i][3].p if rows[i][3] else None for i in places]
            for i, p in zip(places, paired.holm(values), strict=True):
                adjusted[i] = p
        return [
            Comparison(*row[:4], p, _verdict(row[2], row[3], p), row[4])
            for row, p in zip(rows, adjusted, strict=True)
        ]

    def flips(self, comparisons: Iterable[Comparison]) -> Iterator[Flip]:
        """Yield the questions that flipped, task by task; a group's are those of its tasks."""
        seen: set[tuple[str, str, Series]] = set()
        for one in comparisons:
            for task in self._leaves(one.column) if one.found else ():
                series = (task, one.column.filter, one.column.metric)
                key = (one.model, one.reference, series)
                own, other = (self.answers[m].parts[series] for m in key[:2])
                if key in seen or not _binary([own, other]):
                    continue
                seen.add(key)
                for question in sorted(own.keys() & other.keys()):
                    if own[question] != other[question]:
                        yield Flip(*key, question, own[question] > other[question])

    def agreements(self, pairs: Iterable[tuple[str, str]]) -> list[Agreement]:
        """Return how models' answers agree with those of others, on what was asked for.

        Args:
            pairs: A model and another.
        """
        asked = {c.task: self._leaves(c) for c in self.table.columns if c.headline}
        return agreements(self.answers, pairs, asked)

    def interval(self, model: str, column: Column) -> tuple[float, float] | None:
        """Return the 95 % interval of a score, None if nothing tells it."""
        cell = self.table.cells[model, column]
        series = (column.task, column.filter, column.metric)
        own = self.answers.get(model, Answers()).parts.get(series)
        if own and _binary([own]):
            right = sum(value for (value,) in own.values())
            if math.isclose(right / len(own), cell.value, abs_tol=1e-9):
                return paired.share_interval(right / len(own), len(own))
        if cell.stderr is None or not math.isfinite(cell.stderr):
            return None
        return cell.value - paired.Z * cell.stderr, cell.value + paired.Z * cell.stderr

    def _asks(self, column: Column) -> bool:
        """Whether models can be better on a metric, or answer questions for it."""
        if column.higher_is_better is not None:
            return True
        leaves = [(task, column.filter, column.metric) for task in self._leaves(column)]
        return any(s in answers.parts for answers in self.answers.values() for s in leaves)

    def _test(
        self, model: str, reference: str, column: Column
    ) -> tuple[Paired | None, tuple[str, ...]]:
        try:
            return self._paired(model, reference, column)
        except _UntestedError as error:
            return None, (str(error),)

    def _paired(self, model: str, reference: str, column: Column) -> tuple[Paired, tuple[str, ...]]:
        cells = [self.table.cells[name, column] for name in (model, reference)]
        if apart := _apart(cells[0].settings, cells[1].settings):
            raise _UntestedError(f"measured differently: {apart}")
        if not all(math.isfinite(cell.value) for cell in cells):
            raise _UntestedError("a value is infinite")
        tasks = self._leaves(column)
        both = [self._parts(name, column, tasks) for name in (model, reference)]
        ways = [
            aggregation([as_array(task.values()) for task in parts], cell.value)
            for parts, cell in zip(both, cells, strict=True)
        ]
        if ways[0] is None or ways[0] != ways[1]:
            raise _UntestedError("it is no mean over questions, so that there is no paired test")
        shared = [sorted(own.keys() & other.keys()) for own, other in zip(*both, strict=True)]
        count = sum(map(len, shared))
        if min(map(len, shared)) < 1 or count < 2:
            raise _UntestedError("they have answered no common questions")
        own, other = (
            [as_array(task[q] for q in common) for task, common in zip(parts, shared, strict=True)]
            for parts in both
        )
        return _tested(own, other, *ways[0]), self._notes(model, reference, tasks, shared, both)

    def _parts(
        self, model: str, column: Column, tasks: Sequence[str]
    ) -> list[dict[Question, tuple[float, ...]]]:
        """Return what each question adds, of each task in the order of its questions."""
        parts = self.answers.get(model, Answers()).parts
        found = [parts.get((task, column.filter, column.metric), {}) for task in tasks]
        if not found or not all(found):
            raise _UntestedError("no answers to its single questions are stored as numbers")
        if len({len(part) for task in found for part in task.values()}) > 1:
            raise _UntestedError("its answers are not of one form")
        return [dict(sorted(task.items())) for task in found]

    def _leaves(self, column: Column) -> list[str]:
        """Return the tasks that a column's value is made of: the task, or those in a group."""
        stored = {task for answers in self.answers.values() for task, *_ in answers.parts}
        found: dict[str, None] = {}
        todo, seen = [column.task], set()
        while todo:
            task = todo.pop(0)
            if task not in seen:
                seen.add(task)
                inner = list(self.inside.get(task, ()))
                found |= dict.fromkeys([task] if task in stored or not inner else [])
                todo += [] if task in stored else inner
        return list(found)

    def _notes(
        self,
        model: str,
        reference: str,
        tasks: Sequence[str],
        shared: Sequence[Sequence[Question]],
        both: Sequence[Sequence[Mapping[Question, Any]]],
    ) -> tuple[str, ...]:
        notes = []
        count = sum(map(len, shared))
        if any(sum(map(len, parts)) != count for parts in both):
            notes.append(f"of the {count:,} questions that both answered")
        prompts = [[self.answers[m].prompts[task] for task in tasks] for m in (model, reference)]
        if any(
            own.get(q) != other.get(q)
            for own, other, common in zip(*prompts, shared, strict=True)
            for q in common
        ):
            notes.append("the same questions in other prompts")
        return tuple(notes)


def _tested(own: list[Any], other: list[Any], alike: bool, function: Any) -> Paired:
    """Return the test that suits the answers."""
    import numpy

    if alike:
        own, other = [numpy.concatenate(own, axis=1)], [numpy.concatenate(other, axis=1)]
    binary = all(set(numpy.unique(task)) <= _BINARY and len(task) == 1 for task in (*own, *other))
    if binary and alike and function is mean_of:
        return paired.mcnemar(own[0][0], other[0][0])
    if min(task.shape[1] for task in own) < 2:
        raise _UntestedError("a task of the group has fewer than two common questions")
    return paired.bootstrap(own, other, function)


def _binary(series: Iterable[Mapping[Question, tuple[float, ...]]]) -> bool:
    return all(len(part) == 1 and part[0] in _BINARY for own in series for part in own.values())


def _apart(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in words how settings differ, but for which of a task's questions were asked."""
    keys = [k for k in {**own, **other} if own.get(k) != other.get(k)]
    return ", ".join(
        COMPARED.get(k, k + " {}").format(f"{own.get(k)} against {other.get(k)}")
        for k in keys
        if k not in ("limit", "questions")
    )


def _verdict(column: Column, found: Paired | None, adjusted: float | None) -> str:
    if found is None or adjusted is None:
        return "untested"
    if adjusted > ALPHA or not found.difference:
        return "unclear"
    if column.higher_is_better is None:
        return "differs"
    return "better" if (found.difference > 0) == column.higher_is_better else "worse"
