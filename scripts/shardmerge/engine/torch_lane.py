"""What torch computes: chunks of windows, checked and measured as they are made."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from shardmerge.algebra import expression as ex
from shardmerge.base.numerics import Numerics
from shardmerge.engine.ahead import Ahead, Prepared
from shardmerge.engine.buffers import BlockBuffers, torch_dtype
from shardmerge.engine.chunks import EdgeBuffer
from shardmerge.engine.device import Cuda, Host, Slot
from shardmerge.engine.evaluate import Block, Evaluator, round_into
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.layout import Chunk
from shardmerge.engine.lowrank import Products, factor_loader
from shardmerge.engine.native_steps import native_maps
from shardmerge.engine.nonfinite import canonicalize_nan
from shardmerge.engine.record import Tally
from shardmerge.engine.tasks import TensorTask
from shardmerge.engine.whole import Maker, has_nonfinite_source, held_views
from shardmerge.methods.passes import Map


@dataclass
class Shared:
    """What the compute threads of a job share; ``products`` only where they share memory too.

    ``ahead`` has what is made before a tensor's elements.
    """

    tasks: Sequence[TensorTask]
    numerics: Numerics
    files: InputFiles
    tally: Tally
    ahead: Ahead
    products: Products | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    nonfinite_sources: dict[int, bool] = field(default_factory=dict)


class TorchLane:
    """A compute thread's evaluators and buffers.

    Args:
        shared: By all lanes.
        place: Where this lane computes.
        block: Elements that it computes at a time.
    """

    def __init__(self, shared: Shared, place: Host | Cuda, block: int) -> None:
        self._shared, self._place = shared, place
        self._buffers = BlockBuffers(block, torch.device(place.device))
        self._products = shared.products or Products(
            factor_loader(shared.files, place), shared.numerics
        )
        self._maker = self._new_maker(self._buffers)
        self._edge = EdgeBuffer(
            lambda size: torch.empty(size, dtype=torch.uint8, device=place.device)
        )
        self._tensor: int | None = None

    def compute(self, slot: Slot, chunks: Sequence[Chunk]) -> None:
        """Compute chunks of the slot's window from its input buffer into its output buffer."""
        with self._place.active():
            arena = self._place.inputs(slot.arena, slot.window.arena)
            output = self._place.outputs(slot.output)
            for chunk in chunks:
                self._compute(chunk, arena, output)
                self._place.deliver(output, slot.output, chunk.begin, chunk.end)
            self._place.wait()

    def prepare(self, tensor: int) -> Prepared:
        """Make what a tensor needs before its elements."""
        task, shared = self._shared.tasks[tensor], self._shared
        maps: Mapping[ex.Call, Map] = {}
        with self._place.active():
            if task.calls:
                maker = self._new_maker(BlockBuffers(self._buffers.length, self._buffers.device))
                maker.begin(task)
                if self._place.device == "cpu":
                    maker.maps |= native_maps(task, shared.files, shared.tally)
                maps = {call: maker.map(call) for call in task.calls}
            whole = self._maker.make(task) if task.leaves.held else ()
            self._place.wait()
        return Prepared(maps=maps, whole=whole)

    def _compute(self, chunk: Chunk, arena: torch.Tensor, output: torch.Tensor) -> None:
        ahead, number = self._shared.ahead, chunk.tensor
        ready = Prepared()
        if number != self._tensor:
            self._evaluator = None  # lets the last tensor's factors go before others are read
        if number in ahead:
            ready = ahead.take(number, lambda one, _: self.prepare(one))
        if number != self._tensor:
            self._begin(number, ready.maps)
        leaves = [
            arena[position : position + chunk.count * dtype.itemsize].view(dtype)
            for position, dtype in ((p, torch_dtype(code)) for p, code in chunk.leaves)
        ]
        leaves += held_views(self._task.leaves.held, ready.whole, chunk.first, chunk.count)
        with self._edge.elements(chunk, output) as target:
            self._evaluate(chunk, leaves, target.view(torch_dtype(self._task.tensor.dtype)))
        if number in ahead:
            self._place.wait()
            ahead.release(number)

    def _begin(self, tensor: int, maps: Mapping[ex.Call, Map]) -> None:
        """Make the evaluator of an output tensor; a lane keeps the last one."""
        self._task = task = self._shared.tasks[tensor]
        own = task.expression, task.leaves, task.numerics
        shared = self._buffers, task.direct, self._products, maps.__getitem__
        self._evaluator = Evaluator(*own, *shared)
        self._tensor = tensor

    def _new_maker(self, buffers: BlockBuffers) -> Maker:
        shared = self._shared
        return Maker(shared.files, shared.tally, self._place, buffers, self._products)

    def _evaluate(self, chunk: Chunk, leaves: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        """Compute a chunk's elements block by block; count and measure what is found."""
        length, name = self._buffers.length, self._task.tensor.name
        once = self._task.numerics.rounds_once
        split = [leaf.split(length) for leaf in leaves]
        outputs = target.split(length)
        squares: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
        sums = []
        for number, out in enumerate(outputs):
            views = [views[number] for views in split]
            value = self._evaluator.run(
                Block(views, chunk.first + number * length, len(out), squares)
            )
            if once:
                round_into(out, value)
            else:
                out.copy_(value)
            sums.append(out.sum())
        for number, own, base in squares:
            row = float(own), None if base is None else float(base)
            self._shared.tally.add_squares(name, number, *row)
        for number, total in enumerate(sums):
            if not math.isfinite(total):  # any infinity or NaN comes through, so may a large sum
                self._inspect(outputs[number], [views[number] for views in split])

    def _inspect(self, out: torch.Tensor, views: Sequence[torch.Tensor]) -> None:
        """Count a block's infinite and NaN elements that no source has; make NaNs all one."""
        whole = self._task.spreads
        given = whole and not out.isfinite().all() and self._source_is_nonfinite()
        given = given or not all(product.finite for product in self._evaluator.products)
        if (count := canonicalize_nan(out, () if whole else views)) and not given:
            self._shared.tally.add_nonfinite(self._task.tensor.name, count)

    def _source_is_nonfinite(self) -> bool:
        with self._shared.lock:
            known = self._shared.nonfinite_sources
            if self._tensor not in known:
                known[self._tensor] = has_nonfinite_source(self._task, self._shared.files)
            return known[self._tensor]
