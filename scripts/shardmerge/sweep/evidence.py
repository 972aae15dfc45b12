"""How trials compare with the best one, question by question: what is no difference is said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardmerge.benchmark.comparison_table import comparer
from shardmerge.sweep.best import Files, read_metrics
from shardmerge.sweep.bounds import is_within
from shardmerge.sweep.sweeps import Sweep

#: Of a trial: label of an objective to ``better``, ``worse``, ``unclear`` or ``untested``.
Verdicts = Mapping[str, Mapping[str, str]]


def verdicts(sweep: Sweep, files: Files, best: Sequence[str]) -> Verdicts:
    """Return how each trial's objectives compare with those of the first of the best trials.

    The tests are paired, on the same questions, and corrected for their number.

    Args:
        sweep: The sweep.
        files: Results of the trials, with the answers to single questions beside them.
        best: Names of the best trials.

    Raises:
        UserError: If a file is damaged.
    """
    if not best:
        return {}
    made = comparer([path for paths in files.values() for path in paths])
    labels = {sweep.label(name): name for name in files}
    against = sweep.label(best[0])
    pairs = [(label, against) for label in labels if label != against]
    labels_of_aims = {*sweep.objectives, *sweep.weights}
    aims = [column for column in made.table.columns if column.label in labels_of_aims]
    found: dict[str, dict[str, str]] = {}
    for one in made.compare(pairs, aims):
        found.setdefault(labels[one.model], {})[one.column.label] = one.verdict
    return found


def is_surely_worse(
    own: Sequence[str],
    rivals: Sequence[Sequence[str]],
    objectives: Mapping[str, str],
    constraints: Mapping[str, str],
) -> bool:
    """Return whether a trial is surely worse than another one on the same questions.

    It is, if another trial within the constraints is better in an objective by a paired test that
    is corrected for the number of trials, and no worse in the others.

    Args:
        own: Results of the trial.
        rivals: Results of each of the others, of as many questions.
        objectives: Label to ``maximize`` or ``minimize``.
        constraints: Label to a bound.

    Raises:
        UserError: If a file is damaged.
    """
    mine, best = read_metrics(own), []
    for paths in rivals:
        metrics = read_metrics(paths)
        held = all(is_within(bound, metrics[label].value) for label, bound in constraints.items())
        if held and all(
            (metrics[label].value >= mine[label].value) == (word == "maximize")
            or metrics[label].value == mine[label].value
            for label, word in objectives.items()
        ):
            best.append(paths)
    if not best:
        return False
    made = comparer([*own, *(path for paths in best for path in paths)])
    first, *others = made.table.models
    aims = [column for column in made.table.columns if column.label in objectives]
    return any(one.verdict == "worse" for one in made.compare([(first, o) for o in others], aims))
