"""A compute thread: each chunk of a window by native code where it can be, by torch where not."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.chunks import EdgeBuffer
from shardmerge.engine.device import Slot
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.layout import Chunk
from shardmerge.engine.native import native, place_of
from shardmerge.engine.native_steps import StepsOf
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask

if TYPE_CHECKING:
    from shardmerge.engine.torch_lane import TorchLane


class NativeLane:
    """A compute thread.

    Args:
        tasks: Of the shard's tensors.
        files: That the job reads.
        steps: Finds what native code does for a tensor.
        tally: Where time, sums of squares and new infinite values are counted.
        native: Indices of the tensors that native code computes.
        other: Computes all others; None where there are none.
    """

    def __init__(
        self,
        tasks: Sequence[TensorTask],
        files: InputFiles,
        steps: StepsOf,
        tally: Tally,
        native: Collection[int],
        other: TorchLane | None,
    ) -> None:
        self._tasks, self._files, self._steps = tasks, files, steps
        self._tally, self._native, self._other = tally, native, other
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
                    self._steps.release(chunk.tensor)
            rest = [chunk for chunk in chunks if chunk.tensor not in self._native]
            if rest:
                self._other.compute(slot, rest)

    def _evaluate(self, chunk: Chunk, slot: Slot, target: memoryview) -> None:
        """Compute a chunk's elements; count and measure what is found."""
        task = self._tasks[chunk.tensor]
        steps, name = self._steps(chunk.tensor), task.tensor.name
        code = native(steps.program)
        held = self._steps.held(chunk.tensor)
        if held:
            places = held.places(chunk.first, chunk.count)
        else:
            places = [slot.arena.address + at for at, _ in chunk.leaves]
        sizes = [DTYPES[one].size for one in steps.program.leaves]
        output = ctypes.addressof(ctypes.c_char.from_buffer(target))
        all_finite = True
        for first, count, constants in steps.given.pieces(chunk.first, chunk.count):
            made = [load(first, count) for load in steps.given.loads]
            done = first - chunk.first
            leaves = [at + done * size for at, size in zip(places, sizes, strict=True)]
            leaves += map(place_of, (*made, *steps.given.tables))
            out = output + done * chunk.itemsize
            finite, sums = code.run(out, leaves, count, constants)
            all_finite &= finite
            for number, own, base in steps.squares:
                row = sums[own], None if base is None else sums[base]
                self._tally.add_squares(name, number, *row)
        if not all_finite:
            leaves = zip(places, steps.program.leaves, strict=True)
            self._inspect(list(leaves), chunk.count, target, task)

    def _inspect(
        self, leaves: Sequence[tuple[int, str]], count: int, target: memoryview, task: TensorTask
    ) -> None:
        """Count infinite and NaN elements that no source has; make NaNs all one.

        Args:
            leaves: (address, dtype code) of the elements of each leaf.
            count: Elements.
            target: Their results.
            task: Of the tensor.
        """
        import torch

        from shardmerge.engine.buffers import torch_dtype
        from shardmerge.engine.nonfinite import canonicalize_nan

        out = torch.frombuffer(target, dtype=torch_dtype(task.tensor.dtype))
        views = [
            torch.frombuffer(
                (ctypes.c_uint8 * (count * DTYPES[code].size)).from_address(place),
                dtype=torch_dtype(code),
            )
            for place, code in leaves
        ]
        if task.spreads:
            from shardmerge.engine.whole import has_nonfinite_source

            found = canonicalize_nan(out, ())
            found = 0 if has_nonfinite_source(task, self._files) else found
        else:
            found = canonicalize_nan(out, views)
        if found:
            self._tally.add_nonfinite(task.tensor.name, found)
