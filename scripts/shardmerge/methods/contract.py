"""What merge methods declare, and what they get: parameters, inputs, memory, tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    from shardmerge.methods.passes import Map, Passes
    from shardmerge.methods.program import Writer

REQUIRED = object()
#: For ``Parameter.clamped``.
BOTH: frozenset[Literal["minimum", "maximum"]] = frozenset({"minimum", "maximum"})
#: Elements that a kernel works on at a time.
BLOCK = 1 << 17
#: Numbers to try where a parameter has no default and names no examples.
_NUMBERS = (0.5, 1.0, 0.3, -0.7, 0.0, 2.0, 1e-3)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a merge method.

    Args:
        name: As recipes write it.
        type: ``float``, ``int``, ``bool`` or ``str``.
        scope: ``shared`` (one value a tensor), ``input`` (one for each model) or ``model`` (one
            for each model but the base).
        default: Value where a recipe gives none; REQUIRED where it must; None means unset.
        minimum, maximum: Closed bounds of a number, if any.
        clamped: Which of the bounds counts in place of what is beyond it, as in mergekit; beyond
            the others is an error.
        choices: The words that a ``str`` parameter may be, if few.
        unused: Whether the method accepts it without using it.
        idle: Whether it changes no result, so that explanations leave it out without a warning.
        measuring: Whether it says how a whole model is measured (see ``Measure``): it has one value
            for a model, the same for all tensors.
        description: One line for the documentation.
        examples: Values that tests try, an ordinary one first; see ``samples``.
    """

    name: str
    type: type
    scope: Literal["shared", "input", "model"] = "shared"
    default: Any = REQUIRED
    minimum: float | None = None
    maximum: float | None = None
    clamped: frozenset[Literal["minimum", "maximum"]] = frozenset()
    choices: tuple[str, ...] | None = None
    unused: bool = False
    idle: bool = False
    measuring: bool = False
    description: str = ""
    examples: tuple[Any, ...] = ()

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that the parameter may have, an ordinary one first: what tests try."""
        if self.examples:
            return self.examples
        if self.choices:
            return self.choices
        known = () if self.default is REQUIRED else (self.default,)
        usual: dict[type, tuple[Any, ...]] = {bool: (False, True), int: (1,), float: _NUMBERS}
        if known and self.type is float:
            usual = {float: (0.1, 0.5)}
        return tuple(dict.fromkeys((*known, *filter(self._is_within, usual.get(self.type, ())))))

    def clamp(self, value: Any) -> Any:
        """Return a value, or the bound that counts in its place."""
        if "minimum" in self.clamped and value < self.minimum:
            return self.minimum
        if "maximum" in self.clamped and value > self.maximum:
            return self.maximum
        return value

    def _is_within(self, value: Any) -> bool:
        low, high = self.minimum, self.maximum
        return (low is None or low <= value) and (high is None or value <= high)


@dataclass(frozen=True)
class Inputs:
    """What inputs a method needs.

    Args:
        base: ``required``: a base model must be given and is an input; ``optional``: used where
            given; ``forbidden``; ``ignored``: a base model only lends its config and tokenizer.
        minimum, maximum: Number of input models, the base among them where it is one.
        minimum_models, maximum_models: Number of inputs without the base.
        if_single: What becomes of an optional tensor (a bias) that one input alone has: ``merged``
            like any other, ``copied``, or copied if it is the ``base``'s.
    """

    base: Literal["required", "optional", "forbidden", "ignored"] = "ignored"
    minimum: int = 1
    maximum: int | None = None
    minimum_models: int | None = None
    maximum_models: int | None = None
    if_single: Literal["merged", "copied", "base"] = "merged"


@dataclass(frozen=True)
class Measure:
    """What a method must know of whole models: jobs measure it before anything is merged.

    Args:
        kind: What is measured of each model: ``grams``, ``fisher`` or ``norms``.
        step: Name of the step that merges a tensor. Its inputs are those of the method, then what
            was measured of each, in the same order (of norms: of each but the base).
        chosen: Parameter by which a recipe leaves tensors out, or None. These, and those of which
            there is nothing to measure, are merged as the method's linear form says.
    """

    kind: Literal["grams", "fisher", "norms"]
    step: str
    chosen: str | None = None


@dataclass(frozen=True)
class Request:
    """What a linear method is asked for one output tensor.

    Args:
        models: Inputs in the recipe's order, the base among them.
        base: Index of the base among them, or None.
        parameters: Shared parameters by name.
        per_input: For each per-model parameter, one value for each input.
    """

    models: tuple[str, ...]
    base: int | None
    parameters: Mapping[str, Any]
    per_input: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class LinearForm:
    """A result that is a sum: ``sum(direct[i] * input i) + sum(deltas[i] * (input i - base))``."""

    direct: Mapping[int, float] = field(default_factory=dict)
    deltas: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """What a kernel gets for one tensor (or one block of it, if it is elementwise).

    Args:
        tensors: Inputs in the recipe's order, one shape; float32 (float64 where a source is) in
            float32 numerics, the stage's dtype in mergekit numerics.
        base: Index of the base among them, or None.
        parameters: Shared parameters by name.
        per_input: For each per-model parameter, one value for each input (None for the base where
            its scope is ``model``).
        name: The output tensor's name.
        models: The inputs' names in the recipe.
        offset: Index of the block's first element in the flattened tensor.
        total: Elements of the whole tensor; 0 if this is all of it.
        shape: Of the whole tensor; empty if the tensors say it.
        dtype: In mergekit numerics, code of the type that passes compute in.
        make_whole: Makes the elements of whole tensors, if not torch does.
    """

    tensors: Sequence[torch.Tensor]
    base: int | None
    parameters: Mapping[str, Any]
    per_input: Mapping[str, tuple[Any, ...]]
    name: str = ""
    models: tuple[str, ...] = ()
    offset: int = 0
    total: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    make_whole: MakeWhole | None = None

    @property
    def count(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)

    @property
    def others(self) -> list[int]:
        """Indices of the inputs that are not the base."""
        return [i for i in range(len(self.tensors)) if i != self.base]


Kernel = Callable[[Group], "torch.Tensor"]
#: Makes each element of a tensor by a function, rounded as torch rounds: (function of elements,
#: tensors that are contiguous and of one shape, where the elements go: also one of them).
MakeWhole = Callable[["Map", "Sequence[torch.Tensor]", "torch.Tensor"], None]
#: Begins a method's passes; the group's tensors are not looked at, only their number.
BeginPasses = Callable[[Group], "Passes"]
#: Whether a method's passes are known for a group, of which only the parameters are looked at.
PassesFit = Callable[[Group], bool]
#: Says of each task vector, by the index of its input, which elements have a part in the result:
#: a Call's group with float64 numpy arrays in place of tensors -> bool arrays of their shape.
KeptElements = Callable[["Group"], "Mapping[int, np.ndarray]"]
#: Returns a kernel's result, and how far an element of another library's may be from it before it
#: is rounded; the number bounds the distance (Frobenius norm) of each input from the one meant.
BoundedKernel = Callable[[Group, float], "tuple[torch.Tensor, float]"]


class Recorded(NamedTuple):
    """What a job records of a call.

    Args:
        elements: Sampled elements of what is rounded at the end, as text.
        matrices: Of each matrix numbers as text, in the order that the method has; of one that was
            not decomposed none.
    """

    elements: str
    matrices: Sequence[Sequence[str]]


#: Returns a kernel's result, and what is recorded: (group, indices of the sampled elements).
ProbedKernel = Callable[[Group, "np.ndarray"], "tuple[torch.Tensor, Recorded]"]
#: Returns the sampled elements of a call's result, after it has verified what was recorded; raises
#: ProbeError and UndecidedProbeError. What is recorded is None where there is no record.
Verify = Callable[[Group, Recorded | None, "TensorReader"], "Sampled"]
#: Writes a method's arithmetic for one element as steps: (inputs as values, writer) -> value.
StepWriter = Callable[[Group, "Writer"], int]


@dataclass(frozen=True)
class Probing:
    """How a large tensor is checked.

    Args:
        kernel: Computes the bits that the method's kernel computes, and what is recorded.
        verify: Tests what was recorded.
    """

    kernel: ProbedKernel
    verify: Verify


@dataclass(frozen=True)
class Workspace:
    """Memory that a kernel allocates beside its inputs and its result.

    Args:
        tensors: In units of one input tensor.
        per_input: In the same units, for each input.
        rows: In units of one row (what one index of the first dimension holds; a whole tensor
            of one dimension).
        blocks: In units of one block of BLOCK elements.
        squares: In units of a matrix of as many rows and columns as a row has elements.
    """

    tensors: float = 0.0
    per_input: float = 0.0
    rows: float = 0.0
    blocks: float = 32.0
    squares: float = 0.0

    def elements(self, shape: Sequence[int], inputs: int) -> int:
        """Return the number of elements for inputs of a shape."""
        count = math.prod(shape)
        row = count // max(shape[0], 1) if len(shape) > 1 else count
        whole = (self.tensors + self.per_input * inputs) * count
        square = self.squares * row**2
        return math.ceil(whole + self.rows * row + square + self.blocks * min(count, BLOCK))


class Sampled(NamedTuple):
    """Sampled elements, float64, and bounds on their error before rounding.

    Args:
        value, error: The elements and the bounds.
        plain: Whether they were computed from the same elements of the inputs alone.
    """

    value: np.ndarray
    error: np.ndarray
    plain: bool = False


class TensorReader(Protocol):
    """What a check reads again: a call's inputs, and the tensor that was written.

    Args:
        places: Indices of the sampled elements, ascending.
        code: Of the type that the call's result has, F32 or F64.
        finite: Whether no written element may be infinite or NaN.
    """

    places: np.ndarray
    code: str
    finite: bool

    @property
    def rounding(self) -> tuple[float, float] | None:
        """Bounds on the rounding of a written element, relative to it and absolute.

        None where the written tensor is not the call's result alone.
        """

    def rows(
        self, inputs: Sequence[int], begin: int, end: int, *, written: bool = False
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield rows of inputs of one shape, float64 [rows, columns], with the first's number.

        Args:
            inputs: Which.
            begin, end: Rows, of tensors seen as matrices with their last dimension as columns.
            written: Whether rows of the written tensor follow those of the inputs.
        """

    def diagonal(self, number: int) -> np.ndarray:
        """Return the diagonal of an input that is a square matrix, float64."""

    def sample(self, number: int) -> Sampled:
        """Return the sampled elements of an input."""

    def error(self, number: int) -> float:
        """Return how far (Frobenius norm) the rows of an input so far may be from the merge's."""
