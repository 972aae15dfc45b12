"""A compute thread: each chunk of a window by native code where it can be, by torch where not."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from shardmerge.engine.chunks import EdgeBuffer
from shardmerge.engine.device import Slot
from shardmerge.engine.layout import Chunk
from shardmerge.engine.native import native
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask

if TYPE_CHECKING:
    from shardmerge.engine.torch_lane import TorchLane


class NativeLane:
    """A compute thread.

    Args:
        tasks: Of the shard's tensors.
        tally: Where time, sums of squares and new infinite values are counted.
        native: Indices of the tensors that native code computes.
        other: Computes all others; None where there are none.
    """

    def __init__(
        self,
        tasks: Sequence[TensorTask],
        tally: Tally,
        native: Collection[int],
        other: TorchLane | None,
    ) -> None:
        self._tasks, self._tally, self._native, self._other = tasks, tally, native, other
        self._edge = EdgeBuffer(lambda size: memoryview(bytearray(size)))

    def compute(self, slot: Slot) -> None:
        """Compute the chunks of the slot's window from its input buffer into its output buffer."""
        chunks = slot.window.chunks
        if not chunks:
            return
        with self._tally.timed("compute"):
            for chunk in chunks:
                if chunk.tensor in self._native:
                    with self._edge.elements(chunk, slot.output.memory) as target:
                        self._evaluate(chunk, slot, target)
            rest = [chunk for chunk in chunks if chunk.tensor not in self._native]
            if rest:
                self._other.compute(slot, rest)

    def _evaluate(self, chunk: Chunk, slot: Slot, target: memoryview) -> None:
        """Compute a chunk's elements; count and measure what is found."""
        task = self._tasks[chunk.tensor]
        steps, name = task.steps, task.tensor.name
        leaves = [slot.arena.address + position for position, _ in chunk.leaves]
        constants = (ctypes.c_float * len(steps.constants))(*steps.constants)
        address = ctypes.addressof(ctypes.c_char.from_buffer(target))
        finite, sums = native(steps.program).run(address, leaves, chunk.count, constants)
        for number, own, base in steps.squares:
            self._tally.add_squares(name, number, sums[own], None if base is None else sums[base])
        if not finite:
            self._inspect(chunk, slot, target, task)

    def _inspect(self, chunk: Chunk, slot: Slot, target: memoryview, task: TensorTask) -> None:
        """Count infinite and NaN elements that no source has; make NaNs all one."""
        import torch

        from shardmerge.engine.buffers import torch_dtype
        from shardmerge.engine.nonfinite import canonicalize_nan

        out = torch.frombuffer(target, dtype=torch_dtype(task.tensor.dtype))
        views = [
            torch.frombuffer(
                slot.arena.memory, dtype=torch_dtype(code), count=chunk.count, offset=position
            )
            for position, code in chunk.leaves
        ]
        if count := canonicalize_nan(out, views):
            self._tally.add_nonfinite(task.tensor.name, count)
