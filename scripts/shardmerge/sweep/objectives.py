"""What a sweep aims at: metrics with a direction each, or their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.pathnames import check_word

#: The objective that is the weighted sum of metrics.
WEIGHTED = "weighted_sum"


def read_objectives(
    config: Mapping[str, Any], where: str
) -> tuple[dict[str, str], dict[str, float]]:
    """Return the objectives of a configured sweep, and the weights that one of them sums up.

    Raises:
        UserError: If some have a weight and others a direction.
    """
    given = dict(config["objectives"])
    words = {label: word for label, word in given.items() if isinstance(word, str)}
    if not words:
        return {WEIGHTED: "maximize"}, {label: float(weight) for label, weight in given.items()}
    if len(words) < len(given):
        hint = "Write `maximize` or `minimize` for each, or a weight for each."
        raise UserError("some have a weight, others a direction", f"{where}.objectives", hint)
    return words, {}


def check_label(label: str, where: str) -> None:
    """Make sure that a label is a metric of a task.

    Raises:
        UserError: If it is not.
    """
    task, slash, metric = label.partition("/")
    if not (slash and metric):
        message = f"{label!r} is no metric of a task"
        raise UserError(message, where, f"Write `TASK/METRIC`, such as `{label}/acc`.")
    check_word(task, where)
