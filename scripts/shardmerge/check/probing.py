"""What a job recorded of calls that are too large to be recomputed, verified in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.leaves import sum_dtype
from shardmerge.algebra.samples import Runs, positions, probed_calls, sample_runs
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.errors import UserError
from shardmerge.check import memory
from shardmerge.check.error_bounds import Estimate
from shardmerge.check.float_formats import FLOAT_FORMATS, half_ulp
from shardmerge.check.kernels import TooLargeError
from shardmerge.methods.contract import Recorded, Sampled
from shardmerge.methods.kernels.probes import ProbeError, UndecidedProbeError
from shardmerge.methods.registry import probing_of

#: Returns elements of an expression, with bounds.
Evaluate = Callable[[ex.Expression, Runs], Estimate]
#: Returns elements of the written tensor, float64.
ReadWritten = Callable[[Runs], np.ndarray]


def verify_probes(
    tensor: OutputTensor,
    recorded: Sequence[Recorded],
    evaluate: Evaluate,
    written: ReadWritten,
    *,
    finite: bool,
) -> Mapping[tuple[ex.Call, Runs], Estimate]:
    """Return the sampled elements of each call that is too large, once its record is verified.

    Args:
        tensor: Of the shard.
        recorded: Of each of its ``probed_calls``, if anything.
        evaluate: Evaluates the calls' inputs.
        written: Reads the tensor.
        finite: Whether no element of it may be infinite or NaN.

    Raises:
        UserError: If anything recorded or written is wrong.
    """
    found = {}
    calls = probed_calls(tensor.expression)
    for call, told in zip(calls, [*recorded, *[None] * len(calls)], strict=False):
        runs = sample_runs(tensor.name, ex.elements(call))
        whole = written if _outer(tensor.expression) == call else None
        told = Recorded(*told) if told else None
        rounding = [tensor.dtype, *_casts(tensor.expression), sum_dtype(call)]
        reader = _Reader(call, runs, evaluate, whole, rounding, finite)
        try:
            sampled = probing_of(call.method).verify(group_of(call), told, reader)
        except ProbeError as error:
            raise UserError(
                str(error),
                f"tensor {tensor.name!r}",
                "The shard or its record is damaged, or was not made from these sources: delete "
                "both and build them again.",
            ) from None
        except (UndecidedProbeError, TooLargeError):
            continue
        found[call, runs] = _rounded(sampled, sum_dtype(call))
    return found


def _rounded(sampled: Sampled, code: str) -> Estimate:
    value, error = sampled.value, sampled.error
    error = half_ulp(code, np.abs(value) + error) + FLOAT_FORMATS[code].least + error
    return Estimate(value, error, independent=sampled.plain)


def _outer(expression: ex.Expression) -> ex.Expression:
    """Return what an expression rounds, perhaps more than once."""
    match expression:
        case ex.Cast(operand) | ex.Linear(((1.0, operand),)):
            return _outer(operand)
    return expression


def _casts(expression: ex.Expression) -> Iterator[str]:
    match expression:
        case ex.Cast(operand, dtype):
            yield dtype
            yield from _casts(operand)
        case ex.Linear(((1.0, operand),)):
            yield from _casts(operand)


class _Reader:
    """Reads a call's inputs and what was written: ``methods.contract.TensorReader``.

    Args:
        call: The call.
        runs: The sample.
        evaluate: Evaluates inputs.
        written: Reads the written tensor; None if it is not the call's result alone.
        rounding: Codes of the types that a result is rounded to.
        finite: Whether no element of it may be infinite or NaN.
    """

    def __init__(
        self,
        call: ex.Call,
        runs: Runs,
        evaluate: Evaluate,
        written: ReadWritten | None,
        rounding: Sequence[str],
        finite: bool,
    ) -> None:
        self._call, self._runs, self._evaluate = call, runs, evaluate
        self._written, self._rounding = written, rounding
        self._squares = [0.0] * len(call.inputs)
        self.places, self.code, self.finite = positions(runs), sum_dtype(call), finite

    @property
    def rounding(self) -> tuple[float, float] | None:
        if self._written is None:
            return None
        codes = self._rounding
        least = math.fsum(FLOAT_FORMATS[code].least for code in codes)
        return 1.01 * math.fsum(FLOAT_FORMATS[code].unit for code in codes), 2 * least

    def rows(
        self, inputs: Sequence[int], begin: int, end: int, *, written: bool = False
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        width = self._call.inputs[inputs[0]].shape[-1]
        step = max(1, memory.STRIPE // width)
        for first in range(begin, end, step):
            count = min(step, end - first)
            runs = ((first * width, count * width),)
            found = [self._input(i, runs) for i in inputs]
            if written and self._written is not None:
                found.append(self._written(runs))
            yield first, [values.reshape(count, width) for values in found]

    def diagonal(self, number: int) -> np.ndarray:
        size = self._call.inputs[number].shape[-1]
        runs = tuple((i * (size + 1), 1) for i in range(size))
        return self._evaluate(self._call.inputs[number], runs).value

    def sample(self, number: int) -> Sampled:
        found = self._evaluate(self._call.inputs[number], self._runs)
        return Sampled(found.value, found.error)

    def error(self, number: int) -> float:
        return math.sqrt(self._squares[number])

    def _input(self, number: int, runs: Runs) -> np.ndarray:
        found = self._evaluate(self._call.inputs[number], runs)
        self._squares[number] += float(np.vdot(found.error, found.error))
        return found.value
