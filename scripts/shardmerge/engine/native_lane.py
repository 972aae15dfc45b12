"""A compute thread: each chunk of a window by native code where it can be, by torch where not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.ahead import Ahead, Prepared
from shardmerge.engine.chunks import EdgeBuffer
from shardmerge.engine.device import Slot
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.layout import Chunk
from shardmerge.engine.native import native, place_of
from shardmerge.engine.native_steps import steps_in_passes
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask

if TYPE_CHECKING:
    from shardmerge.engine.held import HeldSources
    from shardmerge.engine.torch_lane import TorchLane


class NativeLane:
    """A compute thread.

    Args:
        tasks: Of the shard's tensors.
        files: That the job reads.
        tally: Where time, sums of squares and new infinite values are counted.
        native: Indices of the tensors that native code computes.
        ahead: Has what is made before a tensor's elements.
        hold: Returns a tensor's sources where they are held, of its index and its place; else None.
        other: Computes all others; None where there are none.
    """

    def __init__(
        self,
        tasks: Sequence[TensorTask],
        files: InputFiles,
        tally: Tally,
        native: Collection[int],
        ahead: Ahead,
        hold: Callable[[int, int], HeldSources | None],
        other: TorchLane | None,
    ) -> None:
        self._tasks, self._files, self._tally = tasks, files, tally
        self._native, self._ahead, self._hold, self._other = native, ahead, hold, other
        self._edge = EdgeBuffer(lambda size: memoryview(bytearray(size)))

    def compute(self, slot: Slot) -> None:
        """Compute the chunks of the slot's window from its input buffer into its output buffer."""
        chunks = slot.window.chunks
        if not chunks:
            return
        with self._tally.timed("compute"):
            # in their order, as tensors have their turn
            for native, part in groupby(chunks, lambda one: one.tensor in self._native):
                if native:
                    for chunk in part:
                        self._compute(chunk, slot)
                else:
                    self._other.compute(slot, list(part))

    def prepare_all(self) -> None:
        """Make what tensors need ahead of other lanes, as a thread of its own."""

        def timed(tensor: int, place: int) -> Prepared:
            with self._tally.timed("compute"):
                return self.prepare(tensor, place)

        self._ahead.run(timed)

    def prepare(self, tensor: int, place: int) -> Prepared:
        """Make what a tensor needs before its elements.

        Args:
            tensor: Its index.
            place: The number of the place that it has.
        """
        if tensor not in self._native:
            return self._other.prepare(tensor)
        held = self._hold(tensor, place)
        steps = steps_in_passes(self._tasks[tensor], held or self._files, self._tally)
        return Prepared(steps, held)

    def _compute(self, chunk: Chunk, slot: Slot) -> None:
        ready = Prepared(self._tasks[chunk.tensor].steps)
        if chunk.tensor in self._ahead:
            ready = self._ahead.take(chunk.tensor, self.prepare)
        with self._edge.elements(chunk, slot.output.memory) as target:
            self._evaluate(chunk, slot, target, ready)
        if chunk.tensor in self._ahead:
            self._ahead.release(chunk.tensor)

    def _evaluate(self, chunk: Chunk, slot: Slot, target: memoryview, ready: Prepared) -> None:
        """Compute a chunk's elements; count and measure what is found."""
        task, steps = self._tasks[chunk.tensor], ready.steps
        code, name = native(steps.program), task.tensor.name
        if ready.held:
            places = ready.held.places(chunk.first, chunk.count)
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
