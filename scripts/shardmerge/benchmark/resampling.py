"""Standard errors of what is computed from tokens: whole passages are drawn again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Numbers = NDArray[numpy.float64]

_DRAWS, _SEED = 1000, 20230217


class Passages:
    """The passages that tokens belong to.

    Tokens of one passage depend on each other, so passages are what is drawn (a block bootstrap).

    Args:
        places: Number of the passage of each token.
        asked: Numbers of the passages that count, in rising order.
    """

    def __init__(self, places: Sequence[int], asked: Sequence[int]) -> None:
        import numpy

        found = numpy.searchsorted(asked, places)
        self.count = len(asked)
        self._counts = numpy.append(asked, -1)[found] == places
        self._places = found[self._counts]

    def sums(self, values: Numbers) -> Numbers:
        """Return the sum of tokens' values in each passage that counts."""
        import numpy

        return numpy.bincount(self._places, values[self._counts], self.count)

    def sizes(self) -> Numbers:
        """Return the number of tokens in each passage."""
        import numpy

        return numpy.bincount(self._places, minlength=self.count).astype(float)

    def error(self, function: Callable[[Numbers], float]) -> float | None:
        """Return the standard error of a number, None if there is but one passage.

        Args:
            function: Gives the number if each passage counts so many times.
        """
        import numpy

        if self.count < 2:
            return None
        return float(numpy.std([function(weights) for weights in self._drawn()], ddof=1))

    def quantile(self, values: Numbers, share: float) -> tuple[float, float | None]:
        """Return a quantile of tokens' values with its standard error: no value between two."""
        import numpy

        values = values[self._counts]
        order = numpy.argsort(values, kind="stable")
        places, ordered = self._places[order], values[order]

        def found(weights: Numbers) -> float:
            below = numpy.cumsum(weights[places])
            # a share of nothing: a draw may have no passage with tokens
            return float(
                ordered[min(len(ordered) - 1, int(numpy.searchsorted(below, share * below[-1])))]
            )

        return found(numpy.ones(self.count)), self.error(found)

    def _drawn(self) -> Iterator[Numbers]:
        import numpy

        draw = numpy.random.default_rng(_SEED)
        for _ in range(_DRAWS):
            chosen = draw.integers(self.count, size=self.count)
            yield numpy.bincount(chosen, minlength=self.count).astype(float)


def ratio(above: Numbers, below: Numbers) -> Callable[[Numbers], float]:
    """Return the function of passages' weights that is a sum over another."""

    def found(weights: Numbers) -> float:
        total = float(weights @ below)
        return float(weights @ above) / total if total else 0.0

    return found
