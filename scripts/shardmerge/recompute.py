"""What elements of a merged tensor must be, by another way than the engine's: float64, with bounds.

In float32 numerics every value comes with a bound on how far the engine, which rounds every
product and sum to float32 (float64 where a source is), may be from it. With u = 2**-24 a sum of
n terms errs by at most ``g * sum(|c_i * x_i|)``, ``g = n*u / (1 - n*u)`` (Higham 2002, "Accuracy
and Stability of Numerical Algorithms", section 3.1: one rounding for the product, n - 1 for the
sums). A task vector is rounded to its type by definition, so it is known exactly. For merge
methods that are no sums there is no such formula: their kernel is run in float64 and in float32,
and the difference is the bound. In mergekit numerics the value is what the kernels make of the
dtypes that the expression states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from shardmerge import expression as ex
from shardmerge.dtypes import DTYPES, combine_dtype
from shardmerge.registry import Group, kernel_of
from shardmerge.roundoff import FORMATS, decode, half_ulp, round_to
from shardmerge.samples import Runs, positions

if TYPE_CHECKING:
    import torch

#: Elements of the largest tensor that is recomputed whole, where a method needs all of it.
WHOLE = 1 << 22
#: Allowance for a method's inputs that are sums themselves, relative to the largest of them.
_NESTED = 2.0**-18

#: Returns elements of a source tensor or stored task vector as they lie in the file.
Read = Callable[["ex.Source | ex.Delta", Runs], np.ndarray]


class TooLargeError(Exception):
    """A method must see a whole tensor that has more than WHOLE elements."""


@dataclass(frozen=True)
class Estimate:
    """What elements must be.

    Args:
        value: float64 [elements].
        error: Bound on the distance of what the engine computes before it rounds to the output's
            type; 0 where it must have this very value.
        decides: Whether a method chooses among inputs that are sums themselves, so that at a near
            tie rounding may make it choose differently.
    """

    value: np.ndarray
    error: np.ndarray
    decides: bool = False


class Recomputer:
    """Evaluates expressions at sampled elements.

    Args:
        numerics: One of ``spec.NUMERICS``.
        stored: Task vectors that are read from files.
        read: Reads elements of a source tensor or a stored task vector.
    """

    def __init__(self, numerics: str, stored: Collection[ex.Delta], read: Read) -> None:
        self._numerics = numerics
        self._stored = stored
        self._read = read

    def estimate(self, expression: ex.Expression, runs: Runs, dtype: str) -> Estimate:
        """Return what elements of an expression must be before they are rounded to an output type.

        Args:
            expression: What is evaluated.
            runs: Which elements, each run beginning at a multiple of ``samples.RUN``.
            dtype: safetensors code of the output.

        Raises:
            TooLargeError: If that needs a whole tensor of more than WHOLE elements.
        """
        with np.errstate(all="ignore"):
            if self._numerics == "float32":
                return self._float32(expression, runs)
            value = decode(_to_stored(self._stated(expression, runs), dtype), dtype)
            whole = any(self._is_whole(part) for part in ex.walk(expression))
            # sums over a whole tensor may differ in the last places from one processor to another
            slack = 4 * half_ulp(dtype, np.abs(value)) if whole else np.zeros_like(value)
            return Estimate(value, slack, decides=whole)

    def _is_whole(self, part: ex.Expression) -> bool:
        return isinstance(part, ex.Call) and not kernel_of(part.method, self._numerics)[1]

    def _float32(self, node: ex.Expression, runs: Runs) -> Estimate:
        if isinstance(node, ex.Source) or node in self._stored:
            value = decode(self._read(node, runs), node.dtype)
            return Estimate(value, np.zeros_like(value))
        match node:
            case ex.Delta(finetuned, base, dtype):
                parts = self._float32(finetuned, runs), self._float32(base, runs)
                return _round(_sum([(1.0, parts[0]), (-1.0, parts[1])], _combine(node)), dtype)
            case ex.Linear(terms):
                parts = [(c, self._float32(operand, runs)) for c, operand in terms]
                return _sum(parts, _combine(node))
            case ex.Cast(operand, dtype):
                return _round(self._float32(operand, runs), dtype)
            case ex.Call():
                return self._call(node, runs)
        raise TypeError(f"not an expression: {node!r}")

    def _call(self, call: ex.Call, runs: Runs) -> Estimate:
        whole = self._is_whole(call)
        inputs = [self._float32(i, self._inside(i, call, runs, whole)) for i in call.inputs]
        values = [one.value for one in inputs]
        exact = self._kernel(call, values, runs, whole, "F64")
        error = np.zeros_like(exact)
        if (code := _combine(call)) != "F64":
            error = np.abs(self._kernel(call, values, runs, whole, code) - exact)
            error = np.where(np.isnan(error), np.where(np.isfinite(exact), np.inf, 0.0), error)
        error += half_ulp(code, np.float64(0))  # so that zeros may differ in sign
        nested = any(one.error.any() for one in inputs)
        if nested:
            error += _NESTED * max(np.abs(value).max(initial=0.0) for value in values)
        chosen = positions(runs) if whole else slice(None)
        decides = nested or any(one.decides for one in inputs)
        return Estimate(exact[chosen], error[chosen], decides)

    def _kernel(
        self, call: ex.Call, values: list[np.ndarray], runs: Runs, whole: bool, code: str
    ) -> np.ndarray:
        """Return a kernel's result for values in a dtype, as float64 [elements]."""
        dtype = getattr(_torch(), DTYPES[code].name)
        tensors = [_torch().from_numpy(value).to(dtype, copy=True) for value in values]
        return self._run(call, tensors, runs, whole).double().numpy()

    def _run(
        self, call: ex.Call, tensors: list[torch.Tensor], runs: Runs, whole: bool
    ) -> torch.Tensor:
        """Return a kernel's result, flat: run by run, or once for whole tensors."""
        kernel, _ = kernel_of(call.method, self._numerics)
        if whole:
            shaped = [t.reshape(i.shape) for t, i in zip(tensors, call.inputs, strict=True)]
            return kernel(_group(call, shaped, 0)).reshape(-1)
        results, place = [], 0
        for first, count in runs:
            blocks = [tensor[place : place + count] for tensor in tensors]
            results.append(kernel(_group(call, blocks, first)).clone())
            place += count
        return _torch().cat(results) if results else tensors[0]

    @staticmethod
    def _inside(operand: ex.Expression, call: ex.Call, runs: Runs, whole: bool) -> Runs:
        """Return which elements of an operand a call needs."""
        if not whole:
            return runs
        if max(ex.elements(operand), ex.elements(call)) > WHOLE:
            raise TooLargeError
        return ((0, ex.elements(operand)),)

    def _stated(self, node: ex.Expression, runs: Runs) -> torch.Tensor:
        """Return elements in the dtype that an expression of mergekit numerics states."""
        if isinstance(node, ex.Source) or node in self._stored:
            return _from_stored(self._read(node, runs), node.dtype)
        match node:
            case ex.Cast(operand, dtype):
                return self._stated(operand, runs).to(getattr(_torch(), DTYPES[dtype].name))
            case ex.Call():
                whole = self._is_whole(node)
                tensors = [
                    self._stated(i, self._inside(i, node, runs, whole)).clone() for i in node.inputs
                ]
                result = self._run(node, tensors, runs, whole)
                return result[positions(runs)] if whole else result
        raise TypeError(f"mergekit numerics has no {type(node).__name__}")


def _combine(node: ex.Expression) -> str:
    typed = (ex.Source, ex.Delta, ex.Cast)
    return combine_dtype([part.dtype for part in ex.walk(node) if isinstance(part, typed)])


def _sum(terms: list[tuple[float, Estimate]], code: str) -> Estimate:
    """Return a sum computed in float32 or float64 with the bound of the module's docstring."""
    value = np.zeros_like(terms[0][1].value)
    size, carried = np.zeros_like(value), np.zeros_like(value)
    for index, (coefficient, part) in enumerate(terms):
        product = coefficient * part.value
        value = value + product if index else product  # 0 + -0 would be +0
        size += np.abs(product)
        carried += abs(coefficient) * part.error
    scaled = any(abs(c) != 1 for c, _ in terms)
    roundings = len(terms) - 1 + scaled + any(round_to(code, np.float64(c)) != c for c, _ in terms)
    decides = any(part.decides for _, part in terms)
    if not roundings:
        return Estimate(value, carried, decides)
    if len(terms) == 2 and not scaled and not carried.any():
        # one operation on exact numbers: float64 then float32 rounds as float32 alone does
        # (Figueroa 1995, https://doi.org/10.1145/221332.221334)
        return Estimate(round_to(code, value), carried, decides)
    units = roundings * (FORMATS[code].unit + FORMATS["F64"].unit)
    error = carried + units / (1 - units) * (size + carried)
    error += len(terms) * half_ulp(code, np.float64(0)) * scaled
    # What overflows in between may be infinite or NaN in the end; what comes from a source is.
    error = np.where(size + carried >= FORMATS[code].overflow, np.inf, error)
    given = np.any([~np.isfinite(part.value) for _, part in terms], axis=0)
    error = np.where(given, 0.0, error)
    return Estimate(value, error, decides)


def _round(part: Estimate, dtype: str) -> Estimate:
    exact = part.error == 0
    error = part.error + half_ulp(dtype, np.abs(part.value) + part.error)
    return Estimate(
        np.where(exact, round_to(dtype, part.value), part.value),
        np.where(exact, 0.0, error),
        part.decides,
    )


def _group(call: ex.Call, tensors: list[torch.Tensor], first: int) -> Group:
    return Group(
        tensors=tensors,
        base=call.base,
        parameters=dict(call.parameters),
        per_input=dict(call.per_input),
        name=call.tensor,
        models=call.models,
        offset=first,
    )


@cache
def _torch() -> ModuleType:
    """Return torch, on one thread: the engine's kernels run on one, and sums keep their order."""
    import torch

    torch.set_num_threads(1)
    return torch


def _from_stored(stored: np.ndarray, code: str) -> torch.Tensor:
    if code == "BF16":
        return _torch().from_numpy(stored.view(np.int16).copy()).view(_torch().bfloat16)
    return _torch().from_numpy(stored.copy())


def _to_stored(tensor: torch.Tensor, code: str) -> np.ndarray:
    tensor = tensor.to(getattr(_torch(), DTYPES[code].name)).contiguous()
    if code == "BF16":
        return tensor.view(_torch().int16).numpy().view(np.uint16)
    return tensor.numpy()
