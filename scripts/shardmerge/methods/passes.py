"""A merge method as passes over its inputs: what must be known of all elements, then each element.

A method is a generator. It yields what it must know (sums in a fixed order, counts), is sent the
answers, and returns the function that makes an element. Functions of elements are written with
operators, ``abs`` and what ``Elements`` has. Torch's tensors are such elements, and so are the
values of ``symbolic``, of which native code is made: both execute one declaration. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

#: Elements of an input, or what is made of them: a torch tensor, or a value of ``symbolic``.
Value = Any


class Elements(Protocol):
    """What a function of elements gets: ``x[i]`` are those of input i."""

    def __getitem__(self, index: int) -> Value: ...

    def full(self, number: float) -> Value:
        """Return a number for every element."""

    def where(self, mask: Value, yes: Value | float, no: Value | float) -> Value:
        """Return for each element one of two values."""

    def number(self, mask: Value) -> Value:
        """Return 1 where a mask is set, 0 elsewhere."""

    def along(self, values: np.ndarray, axis: Axis) -> Value:
        """Return for each element the number of its vector, rounded to the inputs' type."""


#: The vectors that a tensor is made of: itself, those along its last dimension, or its first.
Axis = Literal["all", "last", "first"]


@dataclass(frozen=True)
class Sums:
    """Asks for sums in float64, in a fixed order; the answer is float64 [sums, vectors].

    Args:
        function: Returns float64 values of each element, one for each sum.
        axis: Which elements are added up.
    """

    function: Callable[[Elements], Sequence[Value]]
    axis: Axis = "all"


@dataclass(frozen=True)
class Counts:
    """Asks how many elements have some properties; the answer is a list of numbers.

    Args:
        function: Returns masks.
    """

    function: Callable[[Elements], Sequence[Value]]


Wanted = Sums | Counts
#: Makes an element of the result.
Map = Callable[[Elements], Value]
Passes = Generator[Wanted, Any, Map]


def resolve(passes: Passes, answer: Callable[[Wanted], Any]) -> Map:
    """Return what a method's passes end with.

    Args:
        passes: Of the method, not begun.
        answer: Finds out what a pass wants to know.
    """
    try:
        wanted = next(passes)
        while True:
            wanted = passes.send(answer(wanted))
    except StopIteration as end:
        return end.value


def vectors(shape: Sequence[int], axis: Axis) -> tuple[int, int]:
    """Return the number of a tensor's vectors along an axis, and the elements of each."""
    count = 1
    for size in shape:
        count *= size
    if axis == "all" or len(shape) < 2:
        return 1, count
    length = shape[0] if axis == "first" else shape[-1]
    return count // max(length, 1), length


def along_first(shape: Sequence[int], axis: Axis) -> bool:
    """Whether the elements of a vector do not follow each other."""
    return axis == "first" and len(shape) > 1
