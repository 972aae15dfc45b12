"""A compute thread: each part of a window by native code where it can be, by torch where not."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardmerge.algebra.lowering import Steps
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.device import Slot
from shardmerge.engine.layout import Part
from shardmerge.engine.native import native
from shardmerge.engine.record import Tally

if TYPE_CHECKING:
    from shardmerge.engine.torch_lane import TorchLane


class Lane:
    """A compute thread.

    Args:
        spec: The shard.
        tally: Where time, sums of squares and new infinite values are counted.
        steps: Of each output tensor that native code computes, by its index.
        other: Computes all others; None where there are none.
    """

    def __init__(
        self,
        spec: ShardSpec,
        tally: Tally,
        steps: Mapping[int, Steps],
        other: TorchLane | None,
    ) -> None:
        self._spec, self._tally, self._steps, self._other = spec, tally, steps, other
        self._spare = ctypes.create_string_buffer(0)

    def compute(self, slot: Slot) -> None:
        """Compute the parts of the slot's window from its input buffer into its output buffer."""
        parts = slot.window.parts
        if not parts:
            return
        with self._tally.timed("compute"):
            for part in parts:
                if part.tensor in self._steps:
                    self._fill(part, self._steps[part.tensor], slot)
            rest = [part for part in parts if part.tensor not in self._steps]
            if rest:
                self._other.compute(slot, rest)

    def _fill(self, part: Part, steps: Steps, slot: Slot) -> None:
        """Compute a part's elements into the bytes that it has in the window."""
        name, size = self._spec.tensors[part.tensor].name, part.count * self._itemsize(part)
        place, length = slot.output.address + part.begin, part.end - part.begin
        target = place
        if length < size:  # its first or last element lies across the window's edge
            if len(self._spare) < size:
                self._spare = ctypes.create_string_buffer(size)
            target = ctypes.addressof(self._spare)
        leaves = [slot.arena.address + position for position, _ in part.leaves]
        constants = (ctypes.c_float * len(steps.constants))(*steps.constants)
        finite, sums = native(steps.program).run(target, leaves, part.count, constants)
        for number, own, base in steps.squares:
            self._tally.add_squares(name, number, sums[own], None if base is None else sums[base])
        if not finite:
            self._mend(part, target, size, slot)
        if target != place:
            ctypes.memmove(place, target + part.skip, length)

    def _itemsize(self, part: Part) -> int:
        return DTYPES[self._spec.tensors[part.tensor].dtype].size

    def _mend(self, part: Part, target: int, size: int, slot: Slot) -> None:
        """Count infinite and NaN elements that no source has; make NaNs all one."""
        import torch

        from shardmerge.engine.buffers import torch_dtype
        from shardmerge.engine.nonfinite import canonicalize_nan

        tensor = self._spec.tensors[part.tensor]
        out = torch.frombuffer(
            bytearray(ctypes.string_at(target, size)), dtype=torch_dtype(tensor.dtype)
        )
        views = [
            torch.frombuffer(
                slot.arena.memory, dtype=torch_dtype(code), count=part.count, offset=position
            )
            for position, code in part.leaves
        ]
        if count := canonicalize_nan(out, views):
            self._tally.add_nonfinite(tensor.name, count)
        ctypes.memmove(target, out.data_ptr(), size)
