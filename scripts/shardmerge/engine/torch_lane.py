"""What torch computes: parts of windows, checked and measured as they are made."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import direct_deltas, simplify
from shardmerge.algebra.spec import ShardSpec
from shardmerge.engine.buffers import Registers, torch_dtype
from shardmerge.engine.device import Cuda, Host, Slot
from shardmerge.engine.evaluate import Block, Evaluator, round_into
from shardmerge.engine.inputs import Inputs
from shardmerge.engine.layout import Part
from shardmerge.engine.lowrank import Products, factor_loader
from shardmerge.engine.nonfinite import canonicalize_nan
from shardmerge.engine.record import Tally
from shardmerge.engine.whole import Maker, WholeTensors, has_nonfinite_source, held_views


@dataclass
class Job:
    """What the compute threads of a job share; ``products`` only where they share memory too."""

    spec: ShardSpec
    inputs: Inputs
    tally: Tally
    whole: WholeTensors
    products: Products | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    nonfinite_sources: dict[int, bool] = field(default_factory=dict)


class TorchLane:
    """A compute thread's evaluators and buffers.

    Args:
        job: Shared by all lanes.
        place: Where this lane computes.
        block: Elements that it computes at a time.
    """

    def __init__(self, job: Job, place: Host | Cuda, block: int) -> None:
        self._job = job
        self._place = place
        self._registers = Registers(block, torch.device(place.device))
        self._products = job.products or Products(
            factor_loader(job.inputs, place), job.spec.numerics
        )
        self._maker = Maker(job.spec, job.inputs, job.tally, place, self._registers, self._products)
        self._spare = torch.empty(0, dtype=torch.uint8, device=place.device)
        self._tensor: int | None = None

    def compute(self, slot: Slot, parts: Sequence[Part]) -> None:
        """Compute parts of the slot's window from its input buffer into its output buffer."""
        with self._place.active():
            arena = self._place.inputs(slot.arena, slot.window.arena)
            output = self._place.outputs(slot.output)
            for part in parts:
                self._part(part, arena, output)
                self._place.deliver(output, slot.output, part.begin, part.end)
            self._place.wait()

    def _part(self, part: Part, arena: torch.Tensor, output: torch.Tensor) -> None:
        if part.tensor != self._tensor:
            self._prepare(part.tensor)
        leaves = [
            arena[position : position + part.count * dtype.itemsize].view(dtype)
            for position, dtype in ((p, torch_dtype(code)) for p, code in part.leaves)
        ]
        if not part.whole:
            self._fill(part, leaves, output)
            return
        whole = self._job.whole.acquire(part.tensor, self._make_whole)
        leaves += held_views(self._evaluator.wholes, whole, part.first, part.count)
        self._fill(part, leaves, output)
        self._place.wait()
        self._job.whole.release(part.tensor)

    def _prepare(self, tensor: int) -> None:
        """Make the evaluator of an output tensor; a lane keeps the last one."""
        spec = self._job.spec
        expression = simplify(spec.tensors[tensor].expression)
        direct = direct_deltas(expression, spec.numerics)
        numbers = {delta: number for number, delta in enumerate(ex.deltas(expression))}
        squares = {delta: numbers.pop(delta) for delta in direct}
        self._indirect = numbers
        self._expression = expression
        self._evaluator = None  # lets the last tensor's factors go before others are read
        self._evaluator = Evaluator(
            expression, self._job.inputs.stored, spec.numerics, self._registers, squares,
            self._products,
        )  # fmt: skip
        self._tensor = tensor

    def _make_whole(self) -> list[torch.Tensor]:
        return self._maker.make(self._evaluator, self._tensor, dict(self._indirect))

    def _fill(self, part: Part, leaves: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        """Compute a part's elements into the bytes that it has in the window."""
        tensor = self._job.spec.tensors[part.tensor]
        dtype = torch_dtype(tensor.dtype)
        size = part.count * dtype.itemsize
        inside = part.end - part.begin == size and part.begin % dtype.itemsize == 0
        if inside:
            target = output[part.begin : part.end].view(dtype)
        else:  # elements that lie across a window's edge, or not on their own multiple
            if len(self._spare) < size:
                self._spare = torch.empty(size, dtype=torch.uint8, device=output.device)
            target = self._spare[:size].view(dtype)
        self._evaluate(part, leaves, target, tensor.name)
        if not inside:
            raw = target.view(torch.uint8)[part.skip : part.skip + part.end - part.begin]
            output[part.begin : part.end].copy_(raw)

    def _evaluate(
        self, part: Part, leaves: Sequence[torch.Tensor], target: torch.Tensor, name: str
    ) -> None:
        length = self._registers.length
        once = self._job.spec.numerics.rounds_once
        split = [leaf.split(length) for leaf in leaves]
        outputs = target.split(length)
        squares: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
        sums = []
        for number, out in enumerate(outputs):
            views = [views[number] for views in split]
            value = self._evaluator.run(
                Block(views, part.first + number * length, len(out), squares)
            )
            if once:
                round_into(out, value)
            else:
                out.copy_(value)
            sums.append(out.sum())
        for number, own, base in squares:
            row = float(own), None if base is None else float(base)
            self._job.tally.add_squares(name, number, *row)
        for number, total in enumerate(sums):
            if not math.isfinite(total):  # any infinity or NaN comes through, so may a large sum
                self._inspect(part, outputs[number], [views[number] for views in split], name)

    def _inspect(
        self, part: Part, out: torch.Tensor, views: Sequence[torch.Tensor], name: str
    ) -> None:
        """Count a block's infinite and NaN elements that no source has; make NaNs all one."""
        whole = part.whole and not out.isfinite().all() and self._source_is_nonfinite(part.tensor)
        given = whole or not all(product.finite for product in self._evaluator.held)
        if (count := canonicalize_nan(out, () if part.whole else views)) and not given:
            self._job.tally.add_nonfinite(name, count)

    def _source_is_nonfinite(self, tensor: int) -> bool:
        with self._job.lock:
            known = self._job.nonfinite_sources
            if tensor not in known:
                known[tensor] = has_nonfinite_source(self._expression, self._job.inputs)
            return known[tensor]
