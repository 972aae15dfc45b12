"""The two numerics, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Numerics(StrEnum):
    """How a merge rounds; JSON and the configuration hold its name.

    ``Numerics(name)`` reads a name. What differs between the two is asked here by a property, so
    that no code compares names.
    """

    FLOAT32 = "float32"
    MERGEKIT = "mergekit-0.1.5"

    @property
    def rounds_once(self) -> bool:
        """Whether values stay float32 or float64 until they are written.

        If not, every step is rounded to the type that the expression states, as mergekit does.
        """
        return self is Numerics.FLOAT32

    @property
    def folds(self) -> bool:
        """Whether stages fold into one sum, whose task vectors can be stored and measured.

        If not, each stage is computed by the kernels of its method.
        """
        return self is Numerics.FLOAT32

    @property
    def own_order(self) -> bool:
        """Whether long sums are added in a fixed order of our own, and not in torch's."""
        return self is Numerics.FLOAT32

    @property
    def is_default(self) -> bool:
        """Whether a configuration that names none has it."""
        return self is Numerics.FLOAT32


FLOAT32, MERGEKIT = Numerics.FLOAT32, Numerics.MERGEKIT


def sum_in_order(numbers: Iterable[float]) -> float:
    """Return a sum of which each addition is rounded; from Python 3.12 on ``sum`` rounds once."""
    total = 0.0
    for number in numbers:
        total += number
    return total
