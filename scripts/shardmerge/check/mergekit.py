"""What elements of mergekit 0.1.5's merges must be, by numpy: no native code, no torch.

Sums are made from its formulas alone, by no step of ours. What other methods make of elements is
what their passes declare. Every operation is done in float32 and rounded to the type that mergekit
computes in, as torch does with 16 bits on a CPU. From five terms on torch adds in an order of its
own: there the value comes with a bound (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 4.2), and no method but sums is known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.leaves import in_passes, is_stored, stated_dtype
from shardmerge.algebra.lowering import is_native
from shardmerge.algebra.samples import Runs, count_of
from shardmerge.base.numerics import MERGEKIT
from shardmerge.check.error_bounds import Estimate
from shardmerge.check.float_formats import (
    FLOAT_FORMATS,
    decoded,
    half_ulp,
    multiplied_and_added,
    round_to,
)
from shardmerge.check.rows import chosen_parts, gathered
from shardmerge.methods.contract import Group
from shardmerge.methods.kernels.typed import TypedElements, numbers_of
from shardmerge.methods.passes import Map

#: Types that float32 holds.
_TYPES = ("F16", "BF16", "F32")
#: Terms that torch adds in order.
_FEW = 4
_OPERATIONS: dict[str, Callable] = {
    "sub": np.subtract,
    "add": np.add,
    "mul": np.multiply,
    "div": np.divide,
}


class NotKnownError(Exception):
    """An expression has parts of which nothing is known here."""


@dataclass(frozen=True)
class Typed:
    """Elements in a type.

    Args:
        value: float64 [elements], each a number of the type.
        error: Bound on how far mergekit's own may be from it; 0 where it has this very value.
        dtype: Code of the type.
    """

    value: np.ndarray
    error: np.ndarray
    dtype: str


class Formulas:
    """Evaluates expressions of mergekit numerics at sampled elements.

    Args:
        stored: Task vectors that are read from files.
        read: Reads elements of a source tensor or a stored task vector.
        mapped: Finds what calls in passes do to elements, where native code makes these passes.
    """

    def __init__(
        self,
        stored: Collection[ex.Delta],
        read: Callable[[ex.Source | ex.Decoded | ex.Arranged | ex.Delta, Runs], np.ndarray],
        mapped: Callable[[ex.Call, Runs], Map] | None = None,
    ) -> None:
        self._stored, self._read, self._mapped = stored, read, mapped

    def estimate(self, expression: ex.Expression, runs: Runs) -> Estimate:
        """Return what elements must be before they are rounded to an output type.

        Raises:
            NotKnownError: If something of it is not known here; before anything is read.
        """
        if not is_known(expression, self._stored):
            raise NotKnownError
        declared = any(map(_in_passes, ex.walk(expression)))
        if declared and not self._mapped:
            raise NotKnownError
        found = self._value(expression, runs)
        return Estimate(found.value, found.error, independent=not declared)

    def _value(self, node: ex.Expression, runs: Runs) -> Typed:
        if is_stored(node, self._stored):
            value = decoded(self._read(node, runs), node.dtype)
            return Typed(value, np.zeros_like(value), node.dtype)
        match node:
            case ex.Cast(operand, dtype):
                return _rounded(self._value(operand, runs), dtype)
            case ex.Linear(((_, operand),)):
                return self._value(operand, runs)
            case ex.Zero():
                return _zeros(runs, "F32")
            case ex.Call():
                inputs = [self._value(one, runs) for one in node.inputs]
                if len({one.dtype for one in inputs}) > 1:
                    raise NotKnownError
                if node.method in _FORMULAS:
                    return _FORMULAS[node.method](group_of(node, inputs))
                numbers = [numbers_of(one.value, one.dtype) for one in inputs]
                elements = TypedElements(numbers, node.inputs[0].shape, runs)
                made = self._mapped(node, runs)(elements)
                return Typed(made.array.astype(np.float64), np.zeros(count_of(runs)), made.dtype)
            case ex.Rows():
                return self._rows(node, runs)
            case ex.Choice():
                return self._choice(node, runs)
        raise NotKnownError

    def _rows(self, node: ex.Rows, runs: Runs) -> Typed:
        found = gathered(node, runs)
        if not found.runs:
            return _zeros(runs, stated_dtype(node.operand))
        part = self._value(node.operand, found.runs)
        made = _zeros(runs, part.dtype)
        made.value[found.places] = part.value[found.chosen]
        made.error[found.places] = part.error[found.chosen]
        return made

    def _choice(self, node: ex.Choice, runs: Runs) -> Typed:
        parts = [self._value(operand, runs) for operand in node.operands]
        made = _zeros(runs, parts[0].dtype)
        for place, members in chosen_parts(node, runs):
            chosen = [replace(parts[m], value=parts[m].value[place], error=parts[m].error[place])
                      for m in members]  # fmt: skip
            if not chosen:
                continue
            mean = chosen[0]
            if len(chosen) > 1:
                mean = _step("add", mean, 0.0)
                for one in chosen[1:]:
                    mean = _step("add", mean, one)
                mean = _step("div", mean, float(len(chosen)))
            made.value[place], made.error[place] = mean.value, mean.error
        return made


def is_known(node: ex.Expression, stored: Collection[ex.Delta] = ()) -> bool:
    """Whether an expression has only sums of float16, bfloat16 and float32, and calls in passes.

    What such a call gets must be known exactly.
    """
    if is_stored(node, stored):
        return node.dtype in _TYPES
    dtype = node.dtype if isinstance(node, ex.Cast) else "F32"
    known = dtype in _TYPES and _has_formula(node)
    if not known and _in_passes(node) and is_native(node, stored, MERGEKIT):
        known = not any(map(_is_long, ex.walk(node)))
    return known and all(is_known(operand, stored) for operand in ex.operands(node))


def _in_passes(node: ex.Expression) -> bool:
    return in_passes(node, MERGEKIT) and node.method not in _FORMULAS


def _is_long(node: ex.Expression) -> bool:
    """Whether a call adds up more terms than torch adds in order."""
    return isinstance(node, ex.Call) and len(node.inputs) - (node.base is not None) > _FEW


def _linear(group: Group) -> Typed:
    """Add weighted inputs in float32, each product and sum rounded as one; divide; round."""
    weights = group.per_input["weight"]
    (first, *_), dtype = group.tensors, group.tensors[0].dtype
    if weights == (1.0,):
        return _step("add", first, 0.0)
    value, error = np.zeros_like(first.value), np.zeros_like(first.value)
    for one, weight in zip(group.tensors, weights, strict=True):
        made = multiplied_and_added(
            one.value.astype(np.float32), np.float32(weight), value.astype(np.float32)
        ).astype(np.float64)
        error = np.abs(weight) * one.error + error
        value, error = made, np.where(error > 0, error + half_ulp("F32", np.abs(made)), 0.0)
    mixed = Typed(value, error, "F32")
    if group.parameters["normalize"]:
        mixed = _step("div", mixed, _sum_of(weights, "F32"))
    return _rounded(mixed, dtype)


def _passthrough(group: Group) -> Typed:
    (scale,), (one,) = group.per_input["scale"], group.tensors
    return one if scale is None else _step("mul", one, scale)


def _task_arithmetic(group: Group) -> Typed:
    base = group.tensors[group.base]
    if not group.others:
        return base
    dtype, given = base.dtype, [group.per_input["weight"][i] for i in group.others]
    vectors = [_step("sub", group.tensors[i], base) for i in group.others]
    if set(given) != {1.0}:
        vectors = [_step("mul", v, _number(w, dtype)) for v, w in zip(vectors, given, strict=True)]
    mixed = _total(vectors)
    if group.parameters["normalize"]:
        divisor = _sum_of([_number(weight, dtype) for weight in given], dtype)
        tiny = np.abs(divisor.value) < _number(1e-8, dtype)
        mixed = _step("div", mixed, 1.0 if tiny.all() else divisor)
    if (factor := group.parameters["lambda"]) != 1:
        mixed = _step("mul", mixed, factor)
    return _step("add", base, mixed)


_FORMULAS: dict[str, Callable[[Group], Typed]] = {
    "linear": _linear,
    "passthrough": _passthrough,
    "task_arithmetic": _task_arithmetic,
}


def _has_formula(node: ex.Expression) -> bool:
    match node:
        case ex.Linear(terms):
            return len(terms) == 1 and terms[0][0] == 1.0
        case ex.Call(method=method):
            return method in _FORMULAS
    return isinstance(node, ex.Cast | ex.Zero | ex.Rows | ex.Choice)


def _step(name: str, left: Typed, right: Typed | float) -> Typed:
    """Return one operation's result, rounded to float32 and to the type of its left operand."""
    if not isinstance(right, Typed):
        number = np.float64(np.float32(right))
        right = Typed(number, np.float64(0), "F32")
    a, b = left.value.astype(np.float32), right.value.astype(np.float32)
    value = _OPERATIONS[name](a, b).astype(np.float64)
    if name in ("add", "sub"):
        error = left.error + right.error
    elif name == "mul":
        error = left.error * np.abs(right.value) + right.error * np.abs(left.value)
    else:
        error = (left.error + np.abs(value) * right.error) / np.abs(right.value)
    error = np.where(error > 0, error + half_ulp("F32", np.abs(value) + error), 0.0)
    return _rounded(Typed(value, error, "F32"), left.dtype)


def _rounded(one: Typed, dtype: str) -> Typed:
    size = np.abs(one.value) + one.error
    error = np.where(one.error > 0, one.error + half_ulp(dtype, size), 0.0)
    error = np.where((one.error > 0) & (size >= FLOAT_FORMATS[dtype].overflow), np.inf, error)
    return Typed(round_to(dtype, one.value), error, dtype)


def _total(terms: Sequence[Typed]) -> Typed:
    """Return a sum that is made in float32 from +0 and rounded once; its order known if short."""
    dtype, error = terms[0].dtype, sum(one.error for one in terms)
    if len(terms) <= _FEW:
        value = np.zeros_like(terms[0].value, dtype=np.float32)
        for one in terms:
            value = value + one.value.astype(np.float32)
    else:
        value = sum(one.value for one in terms)
        size = sum(np.abs(one.value) for one in terms)
        error = error + 1.01 * len(terms) * FLOAT_FORMATS["F32"].unit * size
    return _rounded(Typed(np.asarray(value, np.float64), error, "F32"), dtype)


def _sum_of(weights: Sequence[float], dtype: str) -> Typed:
    numbers = [np.atleast_1d(_number(weight, "F32")) for weight in weights]
    zero = np.zeros(1)
    return replace(_total([Typed(number, zero, dtype) for number in numbers]), dtype=dtype)


def _number(value: float, dtype: str) -> float:
    """Return a recipe's number as torch makes it one of a type: by way of float32."""
    return float(round_to(dtype, np.float64(np.float32(value))))


def _zeros(runs: Runs, dtype: str) -> Typed:
    count = sum(length for _, length in runs)
    return Typed(np.zeros(count), np.zeros(count), dtype)
