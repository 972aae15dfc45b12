"""A merge method as passes over its inputs: what must be known of all elements, then each element.

A method is a generator. It yields what it must know (sums in a fixed order, counts), is sent the
answers, and returns the function that makes an element. Functions of elements are written with
operators, ``abs`` and what ``Elements`` has. Torch's tensors are such elements, and so are the
values of ``symbolic``, of which native code is made: both execute one declaration. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

#: Elements of an input, or what is made of them: a torch tensor, or a value of ``symbolic``.
ElementValue = Any


class Elements(Protocol):
    """What a function of elements gets: ``x[i]`` are those of input i."""

    def __getitem__(self, index: int) -> ElementValue: ...

    def full(self, number: float) -> ElementValue:
        """Return a number for every element."""

    def quotient(self, value: ElementValue, number: float) -> ElementValue:
        """Return a value divided by a number, rounded once, in the value's type.

        Values alone have the operator: on a card torch makes a product with the reciprocal of it.
        """

    def where(
        self, mask: ElementValue, yes: ElementValue | float, no: ElementValue | float
    ) -> ElementValue:
        """Return for each element one of two values."""

    def number(self, mask: ElementValue) -> ElementValue:
        """Return 1 where a mask is set, 0 elsewhere."""

    def rounded(self, value: ElementValue) -> ElementValue:
        """Return a wider value rounded to the inputs' type."""

    def single(self, value: ElementValue) -> ElementValue:
        """Return a value as float32, rounded if it is wider."""

    def inside(self, value: ElementValue, band: KeyBand) -> ElementValue:
        """Return the mask of elements whose values, none below 0, have ranks in a band.

        They are the values that the band was asked for.
        """

    def chosen(self, mask: Masks) -> ElementValue:
        """Return the mask that a function tells beside."""

    def along(self, values: np.ndarray, axis: Axis, *, wide: bool = False) -> ElementValue:
        """Return for each element the number of its vector, rounded to the inputs' type.

        Args:
            values: Of the vectors.
            axis: Along which they run.
            wide: Return float64 instead.
        """

    def exponent(self, value: ElementValue) -> ElementValue:
        """Return the powers of 2, as float64, by which ``mantissa`` makes positive numbers."""

    def mantissa(self, value: ElementValue) -> ElementValue:
        """Return positive, finite, normal float64 numbers scaled to [sqrt(1/2), sqrt(2))."""

    def power_of_two(self, value: ElementValue) -> ElementValue:
        """Return 2**k for float64 of k + ``RAISED``; for -1023 it is 0, for 1024 infinite.

        Of float32 it is k + ``RAISED_SINGLE``, from -127 to 128.
        """


#: Returns for consecutive elements, (first, count), whether each is chosen: as bits, uint8, the
#: first of eight elements lowest. What follows the last element's bit does not matter.
Masks = Callable[[int, int], "np.ndarray"]
#: Returns for consecutive elements, (first, count), a number of each, uint32 [count].
NumbersOf = Callable[[int, int], "np.ndarray"]
#: Returns indices of elements, in any order.
Places = Callable[[], "np.ndarray"]
#: The bits of the square root of 1/2, of a number's mantissa, and what exponents are stored with.
ROOT_OF_HALF, MANTISSA, BIAS = 0x3FE6A09E667F3BCD, 52, 1023
#: Added to a number below 2**51 it leaves the nearest integer: in the last bits, and without it.
RAISED = 1.5 * 2.0**MANTISSA
#: The same of float32.
SINGLE_MANTISSA, SINGLE_BIAS = 23, 127
RAISED_SINGLE = 1.5 * 2.0**SINGLE_MANTISSA
#: The greatest key of a float32.
GREATEST_KEY = (1 << 31) - 1
#: The vectors that a tensor is made of: itself, those along its last dimension, or its first.
Axis = Literal["all", "last", "first"]


@dataclass(frozen=True)
class Sums:
    """Asks for sums in float64, in a fixed order; the answer is float64 [sums, vectors].

    Args:
        function: Returns float64 values of each element, one for each sum.
        axis: Which elements are added up.
    """

    function: Callable[[Elements], Sequence[ElementValue]]
    axis: Axis = "all"


@dataclass(frozen=True)
class Counts:
    """Asks how many elements have some properties; the answer is a list of numbers.

    Args:
        function: Returns masks.
    """

    function: Callable[[Elements], Sequence[ElementValue]]


@dataclass(frozen=True)
class Ranks:
    """Ranks of a tensor's elements, from 0; of equal ones the first has the lowest.

    Args:
        start, stop: The ranks, stop not among them; there may be none, or more than elements.
        descending: The greatest element has rank 0, not the least.
    """

    start: int
    stop: int
    descending: bool = False


#: Returns ranks by how many of a tensor's values are not 0.
RanksOf = Callable[[int], Ranks]


@dataclass(frozen=True)
class Bands:
    """Asks where values that are not negative have some ranks; the answer is a list of bands.

    Args:
        function: Returns the values; NaN counts as the greatest.
        ranks: Of each value, or what returns them.
        marked: The values take longer to make than a mask takes to be kept and read: bands may have
            marks.
    """

    function: Callable[[Elements], Sequence[ElementValue]]
    ranks: tuple[Ranks | RanksOf, ...]
    marked: bool = False


@dataclass(frozen=True)
class Maxima:
    """Asks for the greatest values of vectors; the answer is float64 [values, vectors].

    Args:
        function: Returns float64 values; a vector with NaN has NaN.
        axis: Of the vectors, ``last`` or ``all``.
    """

    function: Callable[[Elements], Sequence[ElementValue]]
    axis: Axis = "all"


#: Returns values of each element: (elements, the numbers, float64, that the step before found of
#: their rows; of the first step there are none).
RowStep = Callable[[Elements, Sequence[ElementValue]], Sequence[ElementValue]]
#: Returns a number of rows: (what has the functions of elements, numbers of the same rows).
RowResult = Callable[[Elements, Sequence[ElementValue]], ElementValue]


@dataclass(frozen=True)
class RowSteps:
    """Asks for numbers of rows that need other numbers of the same rows, found in steps.

    The answer is what the last step finds, float64 [values, vectors], or what is made of that. The
    steps of a row may follow each other before the next row is looked at.

    Args:
        steps: What each finds of a row's values, and the function of elements that returns them:
            float64, or where they are added up float32, whose sums are made in float32.
        axis: Of the rows.
        result: Makes one number of those that the last step finds of a row, all float64.
    """

    steps: tuple[tuple[Literal["sums", "maxima"], RowStep], ...]
    axis: Axis = "last"
    result: RowResult | None = None


@dataclass(frozen=True)
class OrderStatistics:
    """Asks for the values that have some ranks; the answer is a list of numbers.

    Args:
        function: Returns values of the inputs' type that are not negative.
        ranks: From 0, each less than the number of elements.
        places: Returns the indices of the elements that have ranks, of one perhaps several times;
            None for all. Their values may be negative.
    """

    function: Callable[[Elements], ElementValue]
    ranks: tuple[int, ...]
    places: Places | None = None


@dataclass(frozen=True)
class TorchRows:
    """Asks for a number of each row that torch makes; the answer is float64 [1, rows].

    Args:
        function: Returns the numbers of some rows, which do not depend on others: (all inputs,
            [rows, elements of a row] each).
        axis: Of the rows.
    """

    function: Callable[[Sequence[Any]], Any]
    axis: Axis = "last"


@dataclass(frozen=True)
class RowStatistics:
    """Asks for values that have some ranks, and that are made with a number of their row.

    The answer is those numbers, [rows], and a list as of ``OrderStatistics``. Rows and values may
    be looked at in one pass.

    Args:
        rows: Finds numbers of rows.
        number: Makes of these, [values, rows] of some rows, the number that elements are told.
        function: Returns values of the inputs' type that are not negative: (elements, the number).
        ranks, places: As of ``OrderStatistics``.
    """

    rows: RowSteps | TorchRows
    number: Callable[[np.ndarray], np.ndarray]
    function: Callable[[Elements, ElementValue], ElementValue]
    ranks: tuple[int, ...]
    places: Places | None = None

    def values(self, numbers: np.ndarray, x: Elements) -> ElementValue:
        """Return the values of elements, by the numbers of all rows."""
        return self.function(x, x.along(numbers, "last"))


@dataclass(frozen=True)
class RowChances:
    """Asks which elements are chosen by their values' ranks in rows; the answer is a list of masks.

    An element is chosen if its number beside is below the bound of its rank. A row is what the
    second dimension counts; a tensor of one dimension is one row.

    Args:
        function: Returns the values, not negative.
        numbers: Of each value's elements.
        bounds: For each value those of the ranks, integers [elements of a row], ascending.
        by_torch: Of equal ones any may have the lowest rank: that of ``torch.argsort`` has it.
            Otherwise the first has.
    """

    function: Callable[[Elements], Sequence[ElementValue]]
    numbers: tuple[NumbersOf, ...]
    bounds: tuple[np.ndarray, ...]
    by_torch: bool = False


def ranks_of(ranks: Ranks | RanksOf, count: int, nonzero: int | None) -> Ranks:
    """Return the ranks that so many elements have.

    Args:
        ranks: That are asked for.
        count: Elements.
        nonzero: How many values are not 0, where ranks depend on that.
    """
    one = ranks if isinstance(ranks, Ranks) else ranks(nonzero)
    return Ranks(one.start, min(one.stop, count), one.descending)


#: What puts elements in order: ``torch.argsort``, or ``torch.topk``.
Order = Literal["sort", "topk"]


@dataclass(frozen=True)
class TorchChoice:
    """Asks which elements torch puts at some ranks; the answer is a list of masks.

    It sorts whole tensors, and not stably: which of equal elements are among them depends on all.
    Which zeros are, is not told.

    Args:
        function: Returns the values, not negative; NaN counts as the greatest.
        ranks: Of each value.
        order: What puts them in order. Of ``topk`` the first rank is 0, and they descend.
    """

    function: Callable[[Elements], Sequence[ElementValue]]
    ranks: tuple[Ranks, ...]
    order: Order = "sort"

    def clipped(self, count: int) -> list[Ranks]:
        """Return the ranks of each value that so many elements have."""
        return [ranks_of(one, count, None) for one in self.ranks]


@dataclass(frozen=True)
class Chances:
    """Asks which elements are chosen by chance; the answer is a list of masks.

    Args:
        numbers: Of each mask's elements.
        bounds: Of each mask, what the numbers of the chosen are below.
    """

    numbers: tuple[NumbersOf, ...]
    bounds: tuple[int, ...]


@dataclass(frozen=True)
class TorchSums:
    """Asks for what torch makes of vectors on one thread; the answer is float64 [values, vectors].

    Args:
        function: Returns values, each of the type that its sum is rounded to.
        kind: ``sum``, or ``norm`` for the root of the sum of squares.
        chunk: Elements after which another sum begins, as if it were another vector; 0 for none.
        axis: Of the vectors.
    """

    function: Callable[[Elements], Sequence[ElementValue]]
    kind: Literal["sum", "norm"] = "sum"
    chunk: int = 0
    axis: Axis = "all"


@dataclass(frozen=True)
class Together:
    """Asks for several at once, which take one pass over whole tensors; the answer is a list.

    Args:
        wanted: What is asked for of the same vectors and chunks; none needs another's answer.

    Raises:
        ValueError: If vectors or chunks differ.
    """

    wanted: tuple[TorchSums, ...]

    def __post_init__(self) -> None:
        if len({(one.axis, one.chunk) for one in self.wanted}) != 1:
            raise ValueError("sums of different vectors or chunks")


@dataclass(frozen=True)
class TorchDraws:
    """Asks for the numbers of torch's generator for CPUs; the answer is a ``NumbersOf``.

    A number is one of 24 bits, as a float32 is made of: the k-th of a seed belongs to element k.

    Args:
        seed: Of the generator.
    """

    seed: int


@dataclass(frozen=True)
class KeyBand:
    """The elements that have some ranks, by their keys: a value's bits, which order as it does.

    Args:
        low, high: Keys; all elements between them are in the band.
        at_low, at_high: From which to which element (not included) it has those of either key.
        marks: The mask of the elements of its values that lie in it, where it is held.
    """

    low: int
    high: int
    at_low: tuple[int, int]
    at_high: tuple[int, int]
    marks: Masks | None = field(default=None, compare=False)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the least and the greatest key that an element of an index may have."""
        return (
            self.low + (not self.at_low[0] <= index < self.at_low[1]),
            self.high - (not self.at_high[0] <= index < self.at_high[1]),
        )


NO_BAND = KeyBand(1, 0, (0, 0), (0, 0))


Wanted = (
    Sums
    | Counts
    | Bands
    | Chances
    | RowChances
    | RowSteps
    | Maxima
    | OrderStatistics
    | RowStatistics
    | TorchChoice
    | TorchRows
    | TorchSums
    | Together
    | TorchDraws
)
#: Makes an element of the result.
Map = Callable[[Elements], ElementValue]
Passes = Generator[Wanted, Any, Map]


def end_of(passes: Passes, answer: Callable[[Wanted], Any]) -> Map:
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


def in_turn(wanted: RowSteps) -> Generator[Wanted, Any, np.ndarray]:
    """Ask for the numbers of each step in a pass of its own; return those of the last.

    What the request makes of them is not made.
    """
    found: Sequence[np.ndarray] = ()

    for kind, function in wanted.steps:
        values = partial(step_values, function, found)
        found = yield (Sums if kind == "sums" else Maxima)(values, wanted.axis)
    return found


def rows_first(wanted: RowStatistics) -> Generator[Wanted, Any, tuple[np.ndarray, list[float]]]:
    """Ask for the numbers of all rows, then for the values that have some ranks; return both."""
    numbers = wanted.number((yield wanted.rows))
    function = partial(wanted.values, numbers)
    values = yield OrderStatistics(function, wanted.ranks, wanted.places)
    return numbers, values


def step_values(
    function: RowStep, found: Sequence[np.ndarray], x: Elements
) -> Sequence[ElementValue]:
    """Return a step's values.

    Args:
        function: Of the step.
        found: Numbers of all rows that the step before found.
        x: The elements.
    """
    return function(x, [x.along(row, "last", wide=True) for row in found])


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
