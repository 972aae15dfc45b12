"""Merge methods that must see whole tensors: one tensor at a time is held for them."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable

import torch

from shardmerge import expression as ex
from shardmerge.engine.algebra import FileLeaf, combine, file_leaves
from shardmerge.engine.device import Buffer, Cuda, Host, host_buffer
from shardmerge.engine.evaluate import Block, Evaluator, Registers, torch_dtype
from shardmerge.engine.inputs import Inputs, nbytes
from shardmerge.engine.lowrank import Products
from shardmerge.engine.pipeline import Stopped
from shardmerge.engine.record import Tally
from shardmerge.errors import UserError
from shardmerge.registry import group_of, kernel_of
from shardmerge.spec import ShardSpec


class WholeTensors:
    """The results of one output tensor's whole calls, held while its windows are filled.

    Tensors have their turn in the order of the output, as windows have, so a lane that waits here
    waits only for lanes with earlier windows.

    Args:
        parts: For each output tensor with whole calls, in how many windows it lies.
    """

    def __init__(self, parts: Counter[int]) -> None:
        self._left = parts
        self._turns = sorted(parts, reverse=True)
        self._changed = threading.Condition()
        self._results: list[torch.Tensor] | None = None
        self._stopped = False

    def acquire(self, tensor: int, make: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """Return the results for an output tensor; the first caller makes them.

        Raises:
            Stopped: If another thread of the job failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._turns[-1] == tensor)
            if self._stopped:
                raise Stopped
            if self._results is None:
                self._results = make()
            return self._results

    def release(self, tensor: int) -> None:
        """Say that a window's part of an output tensor is done; the last one frees the results."""
        with self._changed:
            self._left[tensor] -= 1
            if not self._left[tensor]:
                self._results = None
                self._turns.pop()
                self._changed.notify_all()

    def stop(self) -> None:
        """Let every waiting thread go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Maker:
    """Computes the whole calls of an output tensor.

    Args:
        spec: The shard.
        inputs: Its open files.
        tally: Where sums of squares go.
        place: Where the results will lie.
        registers: Buffers that blocks are evaluated in.
        products: Holds the factors of low-rank products.
    """

    def __init__(
        self,
        spec: ShardSpec,
        inputs: Inputs,
        tally: Tally,
        place: Host | Cuda,
        registers: Registers,
        products: Products,
    ) -> None:
        self._spec, self._inputs, self._tally = spec, inputs, tally
        self._place, self._registers, self._products = place, registers, products
        self._buffer: Buffer | None = None

    def make(
        self, evaluator: Evaluator, tensor: int, squares: dict[ex.Delta, int]
    ) -> list[torch.Tensor]:
        """Return the flattened results of the whole calls that an evaluator starts from.

        Args:
            evaluator: Of the output tensor.
            tensor: Its index.
            squares: Numbers of the task vectors under the calls.
        """
        self._name = self._spec.tensors[tensor].name
        self._squares = squares
        results = [self._call(call) for call in evaluator.calls]
        self._place.wait()
        return results

    def _call(self, call: ex.Call) -> torch.Tensor:
        kernel, _ = kernel_of(call.method, self._spec.numerics)
        dtype = torch_dtype(combine(call)) if self._spec.numerics == "float32" else None
        tensors = [self._value(one, dtype).reshape(one.shape) for one in call.inputs]
        with torch.no_grad():
            result = kernel(group_of(call, tensors))
        if result.numel() != ex.elements(call):
            raise UserError(
                f"merge_method {call.method!r} made shape {list(result.shape)} instead of "
                f"{list(call.shape)}",
                f"tensor {self._name!r}",
            )
        return result.contiguous().view(-1)

    def _value(self, expression: ex.Expression, dtype: torch.dtype | None) -> torch.Tensor:
        """Return a call's input whole, in a dtype or (None) in the one that it states."""
        spec, stored = self._spec, self._inputs.stored
        evaluator = Evaluator(
            expression, stored, spec.numerics, self._registers, self._squares, self._products
        )
        results = [self._call(call) for call in evaluator.calls]
        if expression in evaluator.calls:
            return results[0].to(dtype or results[0].dtype)
        count, length = ex.elements(expression), self._registers.length
        target = torch.empty(count if dtype else 0, dtype=dtype, device=self._registers.device)
        for first in range(0, count, length):
            size = min(length, count - first)
            views = self._read(evaluator.files, first, size)
            views += [result[first : first + size] for result in results]
            block = Block(views, first, size)
            value = evaluator.run(block)
            if not len(target):
                target = torch.empty(count, dtype=value.dtype, device=value.device)
            target[first : first + size].copy_(value)
            for number, own, base in block.squares:
                row = float(own), None if base is None else float(base)
                self._tally.add_squares(self._name, number, *row)
            self._place.wait()
        return target

    def _read(self, files: tuple[FileLeaf, ...], first: int, count: int) -> list[torch.Tensor]:
        """Return some elements of each file leaf, where they can be computed with."""
        locations = [self._inputs.locate(leaf) for leaf in files]
        dtypes = [torch_dtype(location.dtype) for location in locations]
        room = [-(-count * dtype.itemsize // 64) * 64 for dtype in dtypes]
        starts = [0, *itertools.accumulate(room)]
        if self._buffer is None or len(self._buffer.memory) < starts[-1]:
            pinned = self._place.name == "cuda"
            self._buffer = host_buffer(starts[-1], tensor=True, pinned=pinned)
        views = []
        for location, dtype, start in zip(locations, dtypes, starts, strict=False):
            end = start + count * dtype.itemsize
            offset = location.begin + first * dtype.itemsize
            self._inputs.read(location.file, offset, self._buffer.memory[start:end])
            views.append((start, end, dtype))
        data = self._place.inputs(self._buffer, starts[-1])
        return [data[start:end].view(dtype) for start, end, dtype in views]


def has_nonfinite_source(expression: ex.Expression, inputs: Inputs, chunk: int = 1 << 22) -> bool:
    """Whether any element of any tensor that an expression is made from is infinite or NaN."""
    memory = host_buffer(chunk, tensor=True)
    for leaf in dict.fromkeys(file_leaves(expression, inputs.stored)):
        location, total = inputs.locate(leaf), nbytes(leaf)
        for start in range(0, total, chunk):
            size = min(chunk, total - start)
            inputs.read(location.file, location.begin + start, memory.memory[:size])
            values = memory.tensor[:size].view(torch_dtype(location.dtype))
            if not values.isfinite().all():
                return True
    return False
