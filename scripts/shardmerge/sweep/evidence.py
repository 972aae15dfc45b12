"""How trials compare with the best one, question by question: what is no difference is said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardmerge.benchmark.comparison_table import comparer
from shardmerge.sweep.best import Files
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
    aims = [column for column in made.table.columns if column.label in sweep.objectives]
    found: dict[str, dict[str, str]] = {}
    for one in made.compare(pairs, aims):
        found.setdefault(labels[one.model], {})[one.column.label] = one.verdict
    return found
