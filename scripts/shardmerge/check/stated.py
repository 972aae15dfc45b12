"""Elements in the dtypes that expressions of mergekit numerics state, by the engine's kernels."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import is_stored, is_whole, stated_dtype, sum_dtype
from shardmerge.algebra.lowering import is_native
from shardmerge.algebra.samples import Runs, count_of, positions
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.check.kernels import (
    Read,
    all_of,
    factor_of,
    load_torch,
    needed,
    run_kernel,
)
from shardmerge.check.row_terms import terms_of_rows
from shardmerge.check.rows import chosen_parts, gathered
from shardmerge.engine.native import is_usable

if TYPE_CHECKING:
    import torch

    from shardmerge.check.recorded import RecordedPasses


class Stated:
    """Evaluates expressions at sampled elements, rounding as mergekit does.

    Args:
        numerics: In which the engine computed.
        stored: Task vectors that are read from files.
        read: Reads elements of a source tensor or a stored task vector.
        passes: Finds what calls in passes do to elements; without it their kernels do it.
    """

    def __init__(
        self,
        numerics: Numerics,
        stored: Collection[ex.Delta],
        read: Read,
        passes: RecordedPasses | None = None,
    ) -> None:
        self._numerics, self._stored, self._read = numerics, stored, read
        self._passes = passes

    def value(self, node: ex.Expression, runs: Runs) -> torch.Tensor:
        """Return elements in the dtype that an expression of mergekit numerics states."""
        if is_stored(node, self._stored):
            return _from_stored(self._read(node, runs), node.dtype)
        match node:
            case ex.Cast(operand, dtype):
                return self.value(operand, runs).to(getattr(load_torch(), DTYPES[dtype].name))
            case ex.Zero():
                return load_torch().zeros(count_of(runs))
            case ex.LowRank():
                return self._product(node, runs)
            case ex.Linear(terms):
                wide = getattr(load_torch(), DTYPES[sum_dtype(node)].name)
                return sum(c * self.value(operand, runs).to(wide) for c, operand in terms)
            case ex.Call() if self.streams(node):
                return self._mapped(node, runs)
            case ex.Call():
                whole = is_whole(node, self._numerics)
                tensors = [self.value(i, needed(i, node, runs, whole)).clone() for i in node.inputs]
                result = run_kernel(node, tensors, runs, whole, self._numerics)
                return result[positions(runs)] if whole else result
            case ex.Rows():
                return self._rows(node, runs)
            case ex.Choice():
                return self._choice(node, runs)
            case ex.Mean(operand):
                whole = self.value(operand, all_of(operand))
                return whole.view(operand.shape[0], -1).mean(dim=0)[positions(runs)]
            case ex.RowSums():
                return self._row_sums(node, runs)
        raise TypeError(f"mergekit numerics has no {type(node).__name__}")

    def streams(self, call: ex.Call) -> bool:
        """Whether native code finds what depends on the whole of a call's inputs."""
        return bool(self._passes) and is_usable() and is_native(call, self._stored, self._numerics)

    def _mapped(self, call: ex.Call, runs: Runs) -> torch.Tensor:
        """Return what a call's passes make of sampled elements, by torch."""
        from shardmerge.methods.kernels.execute import TorchElements

        inputs = [self.value(one, runs) for one in call.inputs]
        make, shape = self._passes.sampled(call, runs), call.inputs[0].shape
        return make(TorchElements(inputs, shape, runs=runs))

    def _product(self, node: ex.LowRank, runs: Runs) -> torch.Tensor:
        from shardmerge.engine.lowrank import product_of

        dtype = getattr(load_torch(), DTYPES[node.dtype].name)
        factors = (
            load_torch().from_numpy(factor_of(self._read, f)).to(dtype) for f in (node.b, node.a)
        )
        made = product_of(node, *factors, ordered=False)
        return load_torch().cat([made.block(first, count, None) for first, count in runs])

    def _rows(self, node: ex.Rows, runs: Runs) -> torch.Tensor:
        dtype = getattr(load_torch(), DTYPES[stated_dtype(node)].name)
        result = load_torch().zeros(count_of(runs), dtype=dtype)
        found = gathered(node, runs)
        if found.runs:
            part = self.value(node.operand, found.runs)
            result[found.places] = part[found.chosen]
        return result

    def _row_sums(self, node: ex.RowSums, runs: Runs) -> torch.Tensor:
        wide = getattr(load_torch(), DTYPES[sum_dtype(node)].name)
        total = load_torch().full((count_of(runs),), -0.0, dtype=wide)
        reached = load_torch().zeros(count_of(runs), dtype=load_torch().bool)
        for term in terms_of_rows(node, self._read, runs):
            part = self.value(node.operand, term.runs)[term.chosen].to(wide)
            total[term.places] += load_torch().from_numpy(term.weights).to(wide) * part
            reached[term.places] = True
        total[~reached] = 0.0
        return total.to(getattr(load_torch(), DTYPES[stated_dtype(node)].name))

    def _choice(self, node: ex.Choice, runs: Runs) -> torch.Tensor:
        parts = [self.value(operand, runs) for operand in node.operands]
        result = load_torch().zeros_like(parts[0])
        for place, members in chosen_parts(node, runs):
            if len(members) == 1:
                result[place] = parts[members[0]][place]
            elif members:
                for member in members:
                    result[place] += parts[member][place]
                result[place] /= len(members)
        return result


def _from_stored(stored: np.ndarray, code: str) -> torch.Tensor:
    if code == "BF16":
        return load_torch().from_numpy(stored.view(np.int16).copy()).view(load_torch().bfloat16)
    return load_torch().from_numpy(stored.copy())


def to_stored(tensor: torch.Tensor, code: str) -> np.ndarray:
    """Return elements rounded to a type, as they lie in a file."""
    tensor = tensor.to(getattr(load_torch(), DTYPES[code].name)).contiguous()
    if code == "BF16":
        return tensor.view(load_torch().int16).numpy().view(np.uint16)
    return tensor.numpy()
