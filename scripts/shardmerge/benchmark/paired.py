"""Statistics of two models that answered the same questions, and of many such pairs.

Both models met the same easy and hard questions, so that only their differences question by
question tell which is better. A test that takes the models apart sees less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Numbers = NDArray[numpy.float64]

#: How often a wrong claim may stand in one family of comparisons.
ALPHA = 0.05
#: Draws of a bootstrap; its smallest p-value is one in so many.
RESAMPLES = 9999
_SEED = 20_231_001
#: Numbers that are drawn at once.
_BATCH = 4_000_000
#: Standard errors from the middle to the end of a 95 % interval.
Z = 1.959964


@dataclass(frozen=True)
class Paired:
    """What a test says of two models.

    Args:
        test: ``mcnemar`` or ``bootstrap``.
        difference: The first model's value minus the second's.
        low, high: Its 95 % interval.
        p: Probability of a difference as large if both models were equally good.
        questions: Questions that both answered.
        up, down: Questions on which the first has the higher, and the lower value.
    """

    test: str
    difference: float
    low: float
    high: float
    p: float
    questions: int
    up: int
    down: int


def mcnemar(own: Numbers, other: Numbers) -> Paired:
    """Compare right and wrong answers: exact test of McNemar, interval of Bonett and Price (2012).

    Questions that both models have right, or both wrong, tell nothing of their difference. Of
    equally good models each of the others is a toss of a coin.

    Args:
        own, other: 0 or 1 for each question, in the same order.
    """
    from scipy.stats import binomtest

    n, up, down = len(own), int((own > other).sum()), int((own < other).sum())
    p = binomtest(min(up, down), up + down).pvalue if up + down else 1.0
    gained, lost = (up + 1) / (n + 2), (down + 1) / (n + 2)
    middle = gained - lost
    half = Z * math.sqrt((gained + lost - middle**2) / (n + 2))
    ends = max(-1.0, middle - half), min(1.0, middle + half)
    return Paired("mcnemar", (up - down) / n, *ends, float(p), n, up, down)


def bootstrap(
    own: Sequence[Numbers], other: Sequence[Numbers], value: Callable[..., Numbers]
) -> Paired:
    """Compare values of any kind: questions are drawn again and again, for both models the same.

    Args:
        own, other: A group's tasks, or one: arrays of shape (parts, questions), what the metric
            is made of for each question.
        value: Of such parts the metric, over the axis ``axis``.
    """
    import numpy
    from scipy import stats

    draws, points = numpy.zeros(RESAMPLES), 0.0
    for first, second in zip(own, other, strict=True):
        parts, n = first.shape

        def difference(*rows: Numbers, axis: int = -1, parts: int = parts) -> Numbers:
            return value(rows[:parts], axis=axis) - value(rows[parts:], axis=axis)

        found = stats.bootstrap(
            (*first, *second),
            difference,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH // n),
            paired=True,
            vectorized=True,
            method="percentile",
            rng=numpy.random.default_rng(_SEED),
        )
        draws += found.bootstrap_distribution / len(own)
        points += float(difference(*first, *second)) / len(own)
    low, high = numpy.percentile(draws, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    up, down = _leads(own, other, value)
    if not up + down:
        return Paired("bootstrap", points, points, points, 1.0, _total(own), 0, 0)
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    # draws of a few questions know less than they seem to: no test of signs could say more
    least = 2.0 ** (1 - _total(own))
    p = min(1.0, max(least, 2 * (tail + 1) / (RESAMPLES + 1)))
    return Paired("bootstrap", points, float(low), float(high), p, _total(own), up, down)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's method; None stays None and does not count.

    Holm keeps the probability of even one wrong claim below ``ALPHA``, however the comparisons
    depend on each other (Holm, 1979). Here they do depend: all models answer the same questions.
    """
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def least_flips(comparisons: int) -> int:
    """Return how many questions must flip, all the same way, until McNemar's test can tell.

    Args:
        comparisons: In the family; the strictest step of Holm's method is what counts.
    """
    return math.ceil(1 - math.log2(ALPHA / max(1, comparisons)))


def share_interval(share: float, questions: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of right answers, by Wilson's method.

    It is no point even where all answers are right. Plots need it where scipy is not installed.
    """
    spread = Z**2 / questions
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _leads(
    own: Sequence[Numbers], other: Sequence[Numbers], value: Callable[..., Numbers]
) -> tuple[int, int]:
    """Return on how many questions the first has the higher value, and the lower one."""
    alone = [[value(task[..., None], axis=-1) for task in tasks] for tasks in (own, other)]
    pairs = list(zip(*alone, strict=True))
    return sum(int((a > b).sum()) for a, b in pairs), sum(int((a < b).sum()) for a, b in pairs)


def _total(tasks: Sequence[Numbers]) -> int:
    return sum(task.shape[-1] for task in tasks)
