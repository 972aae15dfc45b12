"""What elements of a merged tensor must be, by another way than the engine's: float64, with bounds.

In float32 numerics every value comes with a bound on how far the engine, which rounds every
product and sum to float32 (float64 where a source is), may be from it. The bound runs along with
the sum: an operation whose result r is exact adds nothing, any other at most ``u * |r|``, with
u = 2**-24 (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.3). A task
vector is rounded to its type by definition, so it is known exactly. For merge methods that are no
sums there is no such formula: their kernel is run in float64 and in float32, and the difference is
the bound. A method that decomposes matrices has other bits with another library; it knows itself
how far apart two results may be (``bounds_of``), and what must hold of one that is too large for
that (``probing``). In mergekit numerics ``recompute_mergekit`` makes
sums by another way; all else is what the engine's own kernels make of the dtypes that the
expression states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.leaves import is_stored, is_whole, sum_dtype
from shardmerge.algebra.lowering import is_native
from shardmerge.algebra.patterns import alike
from shardmerge.algebra.samples import RUN, RUNS, Runs, count_of, positions, probed_calls
from shardmerge.algebra.spec import OutputTensor
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import FLOAT32, Numerics
from shardmerge.check.error_bounds import (
    Estimate,
    difference,
    joined,
    product,
    product_rows,
    round_estimate,
    rounded_error,
    total,
)
from shardmerge.check.float_formats import FLOAT_FORMATS, decoded, half_ulp, round_to
from shardmerge.check.kernels import (
    Read,
    UndecidedError,
    factor_of,
    load_torch,
    needed,
    run_kernel,
)
from shardmerge.check.mergekit import Formulas, NotKnownError
from shardmerge.check.probing import ReadWritten, verify_probes
from shardmerge.check.recorded import RecordedPasses
from shardmerge.check.row_terms import sum_of_rows
from shardmerge.check.rows import are_rows, chosen_parts, gathered, mean_of_rows
from shardmerge.check.stated import Stated, to_stored
from shardmerge.engine.native import is_usable
from shardmerge.engine.tile_buffers import ReadFiles
from shardmerge.methods.kernels.plain import PlainElements
from shardmerge.methods.registry import Recorded, bounds_of

if TYPE_CHECKING:
    from shardmerge.methods.contract import BoundedKernel

#: Allowance for a method's inputs that are sums themselves, relative to the largest of them.
_NESTED = 2.0**-18
#: A bound on what libraries make says nothing from here on, relative to the largest element.
_UNDECIDED = 2.0**-6

#: What is rounded to a type by definition, so that the engine has the very numbers.
_EXACT = (ex.Source, ex.Decoded, ex.Delta)
#: What is evaluated once for a tensor's sample: statistics ask for it again.
_KEPT = (ex.Source, ex.Decoded, ex.Delta, ex.LowRank, ex.Rows)


class Recomputer:
    """Evaluates expressions at sampled elements.

    Args:
        numerics: In which the engine computed.
        stored: Task vectors that are read from files.
        read: Reads elements of a source tensor or a stored task vector.
        files: Streams whole tensors past native code; without it methods that are declared as
            passes are recomputed by their kernels.
    """

    def __init__(
        self,
        numerics: Numerics,
        stored: Collection[ex.Delta],
        read: Read,
        files: ReadFiles | None = None,
    ) -> None:
        self._numerics = numerics
        self._stored = stored
        self._read = read
        self._files = files
        self._recorded: Mapping[ex.Call, Sequence[Any]] = {}
        self._known: dict[Runs, dict[ex.Expression, Estimate]] = {}
        self._latest: tuple[Runs | None, dict[ex.Expression, Estimate]] = None, {}
        self._probed: Mapping[tuple[ex.Call, Runs], Estimate] = {}

    def forget(self, recorded: Mapping[ex.Call, Sequence[Any]] | None = None) -> None:
        """Drop what was kept of a tensor's leaves and task vectors.

        Args:
            recorded: What the merge job found of whole tensors for each call of the next one.
        """
        self._known, self._latest = {}, (None, {})
        self._probed = {}
        self._recorded = recorded or {}

    def estimate(self, expression: ex.Expression, runs: Runs, dtype: str) -> Estimate:
        """Return what elements of an expression must be before they are rounded to an output type.

        Args:
            expression: What is evaluated.
            runs: Which elements, each run beginning at a multiple of ``samples.RUN``.
            dtype: safetensors code of the output.

        Raises:
            TooLargeError: If that needs a whole tensor of more than WHOLE elements.
            UndecidedError: If a library decides what the result is, as where singular values are
                equal and one of them is kept.
        """
        with np.errstate(all="ignore"):
            self._begin()
            if self._numerics.rounds_once:
                return self._float32(expression, runs)
            whole = any(self._adds_up(part) for part in ex.walk(expression))
            mapped = self._passes.sampled if self._passes and is_usable() else None
            with contextlib.suppress(NotKnownError):
                found = Formulas(self._stored, self._read, mapped).estimate(expression, runs)
                return _near(round_to(dtype, found.value), dtype) if whole else found
            stated = Stated(self._numerics, self._stored, self._read, self._passes)
            value = decoded(to_stored(stated.value(expression, runs), dtype), dtype)
            if whole:
                return _near(value, dtype)
            return Estimate(value, np.zeros_like(value), independent=False)

    def probe(
        self,
        tensor: OutputTensor,
        recorded: Sequence[Recorded],
        written: ReadWritten,
        *,
        finite: bool,
    ) -> bool:
        """Verify what was recorded of the next tensor's calls that are too large to be recomputed.

        Args:
            tensor: Of the shard.
            recorded: Of each of these calls, if anything.
            written: Reads elements of the tensor.
            finite: Whether no element of it may be infinite or NaN.

        Returns:
            Whether there are such calls, and all are verified.

        Raises:
            UserError: If anything recorded or written is wrong.
        """
        if not (calls := probed_calls(tensor.expression)):
            return False
        with np.errstate(all="ignore"):
            self._begin()
            told = tensor, recorded, self._evaluate, written
            self._probed = verify_probes(*told, finite=finite)
        return len(self._probed) == len(calls)

    def _begin(self) -> None:
        # what was found of one tensor is of no use for the next
        files, numerics = self._files, self._numerics
        self._passes = files and RecordedPasses(files, numerics, self._recorded)

    def value(self, expression: ex.Expression, runs: Runs) -> np.ndarray:
        """Return elements of an expression without calls, float64, as exactly as they are known.

        A task vector is rounded to its type, whether it is read or computed.
        """
        with np.errstate(all="ignore"):
            return self._float32(expression, runs).value

    def _adds_up(self, part: ex.Expression) -> bool:
        return is_whole(part, self._numerics) or isinstance(part, ex.LowRank)

    def _float32(self, node: ex.Expression, runs: Runs) -> Estimate:
        if not isinstance(node, _KEPT) or count_of(runs) > RUN * RUNS:
            return self._evaluate(node, runs)
        known = self._known_of(runs)
        if (found := known.get(node)) is None:
            found = known[node] = self._evaluate(node, runs)
        return found

    def _known_of(self, runs: Runs) -> dict[ex.Expression, Estimate]:
        if runs is not self._latest[0]:  # a hash of runs takes longer than all else here
            self._latest = runs, self._known.setdefault(runs, {})
        return self._latest[1]

    def _evaluate(self, node: ex.Expression, runs: Runs) -> Estimate:
        if is_stored(node, self._stored):
            value = decoded(self._read(node, runs), node.dtype)
            return Estimate(value, np.zeros_like(value))
        match node:
            case ex.Delta(finetuned, base, dtype):
                parts = self._float32(finetuned, runs), self._float32(base, runs)
                return round_estimate(difference(*parts, sum_dtype(node)), dtype)
            case ex.Zero():
                return Estimate(np.zeros(count_of(runs)), np.zeros(count_of(runs)))
            case ex.LowRank():
                factors = factor_of(self._read, node.b), factor_of(self._read, node.a)
                if are_rows(node.shape[-1], runs):
                    return product_rows(node, *factors, runs[0])
                return product(node, *factors, positions(runs))
            case ex.Linear(terms):
                parts = [(c, self._float32(operand, runs)) for c, operand in terms]
                return total(parts, sum_dtype(node))
            case ex.Cast(operand, dtype):
                return round_estimate(self._float32(operand, runs), dtype)
            case ex.Call():
                return self._call(node, runs)
            case ex.Rows():
                return self._rows(node, runs)
            case ex.Choice():
                return self._choice(node, runs)
            case ex.Mean():
                return self._mean(node, runs)
            case ex.RowSums():
                operand = partial(self._float32, node.operand)
                return sum_of_rows(node, self._read, runs, operand)
        raise TypeError(f"not an expression: {node!r}")

    def _rows(self, node: ex.Rows, runs: Runs) -> Estimate:
        value, error = np.zeros(count_of(runs)), np.zeros(count_of(runs))
        found = gathered(node, runs)
        part = self._float32(node.operand, found.runs or ((0, 0),))
        value[found.places] = part.value[found.chosen]
        error[found.places] = part.error[found.chosen]
        return replace(part, value=value, error=error)

    def _choice(self, node: ex.Choice, runs: Runs) -> Estimate:
        parts = [self._float32(operand, runs) for operand in node.operands]
        code = sum_dtype(node)
        value, error = np.zeros(count_of(runs)), np.zeros(count_of(runs))
        for place, members in chosen_parts(node, runs):
            if not members:
                continue
            terms = [(1.0, Estimate(parts[m].value[place], parts[m].error[place])) for m in members]
            found = total(terms, code)
            value[place], error[place] = found.value, found.error
            if len(members) > 1:
                value[place] /= len(members)
                error[place] = rounded_error(value[place], error[place] / len(members), code)
        return joined(value, error, parts)

    def _mean(self, node: ex.Mean, runs: Runs) -> Estimate:
        parts = []

        def values(some: Runs) -> tuple[np.ndarray, np.ndarray]:
            part = self._float32(node.operand, some)
            parts.append(part)
            return part.value, part.error

        value, error = mean_of_rows(node.operand.shape, values)
        value, error = value[positions(runs)], error[positions(runs)]
        return joined(value, rounded_error(value, error, sum_dtype(node)), parts)

    def _bounded(self, call: ex.Call, runs: Runs, kernel: BoundedKernel) -> Estimate:
        """Recompute what a library's decompositions make, with the bound that the method knows."""
        inputs = [self._float32(i, needed(i, call, runs, whole=True)) for i in call.inputs]
        tensors = [
            load_torch().from_numpy(one.value.copy()).reshape(node.shape)
            for one, node in zip(inputs, call.inputs, strict=True)
        ]
        carried = max(float(np.linalg.norm(one.error)) for one in inputs)
        result, apart = kernel(group_of(call, tensors), carried)
        if not apart <= _UNDECIDED * float(result.abs().max()):
            raise UndecidedError
        value, code = result.reshape(-1).numpy()[positions(runs)], sum_dtype(call)
        error = half_ulp(code, np.abs(value) + apart) + FLOAT_FORMATS[code].least + apart
        return Estimate(value, error, any(one.decides for one in inputs), independent=False)

    def _call(self, call: ex.Call, runs: Runs) -> Estimate:
        if self._probed and (found := self._probed.get((call, runs))):
            return found
        if bounded := bounds_of(call.method):
            return self._bounded(call, runs, bounded)
        streamed = bool(self._passes) and is_usable() and self._is_native(call)
        whole = is_whole(call, self._numerics) and not streamed
        inputs = [self._float32(i, needed(i, call, runs, whole)) for i in call.inputs]
        values = [one.value for one in inputs]
        kernel = self._mapped if streamed else self._kernel
        exact = kernel(call, values, runs, whole, "F64")
        error = np.zeros_like(exact)
        if (code := sum_dtype(call)) != "F64":
            error = np.abs(kernel(call, values, runs, whole, code) - exact)
            if (unknown := np.isnan(error)).any():
                error[unknown] = np.where(np.isfinite(exact[unknown]), np.inf, 0.0)
        error += FLOAT_FORMATS[code].least  # so that zeros may differ in sign
        nested = any(one.error.any() for one in inputs)
        if nested:
            error += _NESTED * max(np.abs(value).max(initial=0.0) for value in values)
        chosen = positions(runs) if whole else slice(None)
        decides = nested or any(one.decides for one in inputs)
        return Estimate(exact[chosen], error[chosen], decides, independent=False)

    def _is_native(self, call: ex.Call) -> bool:
        return is_native(call, self._stored, FLOAT32) if self._stored else alike(call, _streams)

    def _mapped(
        self, call: ex.Call, values: list[np.ndarray], runs: Runs, _: bool, code: str
    ) -> np.ndarray:
        """Return what a call's passes make of sampled values in a dtype, as float64 [elements]."""
        make, shape = self._passes.sampled(call, runs), call.inputs[0].shape
        dtype = np.float64 if code == "F64" else np.float32
        arrays = [value.astype(dtype, copy=False) for value in values]
        exact = all(isinstance(one, _EXACT) for one in call.inputs)
        if dtype == np.float32 and not exact:
            # so that thresholds are compared with what they were found of
            arrays = self._passes.inputs(call, runs)
        return make(PlainElements(arrays, shape, runs)).array.astype(np.float64, copy=False)

    def _kernel(
        self, call: ex.Call, values: list[np.ndarray], runs: Runs, whole: bool, code: str
    ) -> np.ndarray:
        """Return a kernel's result for values in a dtype, as float64 [elements]."""
        dtype = getattr(load_torch(), DTYPES[code].name)
        tensors = [load_torch().from_numpy(value).to(dtype, copy=True) for value in values]
        return run_kernel(call, tensors, runs, whole, self._numerics).double().numpy()


def _streams(call: ex.Call) -> bool:
    return is_native(call, (), FLOAT32)


def _near(value: np.ndarray, dtype: str) -> Estimate:
    """Return an estimate of what needs long sums.

    Torch's may differ in the last places from one processor to another.
    """
    return Estimate(value, 4 * half_ulp(dtype, np.abs(value)), decides=True, independent=False)
