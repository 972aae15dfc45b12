"""What must be seen or held whole: inputs of some merge methods, tensors whose rows are taken."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import begin_passes, group_of
from shardmerge.algebra.leaves import (
    FileLeaf,
    HeldLeaf,
    block_leaves,
    is_held,
    mean_streams,
    stated_dtype,
    sum_dtype,
)
from shardmerge.algebra.rows import row_ranges
from shardmerge.algebra.samples import is_probed, positions, probed_calls, sample_runs
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.engine.buffers import BlockBuffers, torch_dtype
from shardmerge.engine.device import Cuda, Host, host_buffer
from shardmerge.engine.evaluate import Block, Evaluator
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.locations import AnyLocation, apart
from shardmerge.engine.lowrank import Products
from shardmerge.engine.made_natively import make_natively
from shardmerge.engine.quick_choice import tensor_mask
from shardmerge.engine.record import Tally
from shardmerge.engine.row_sums import RowSummer
from shardmerge.engine.tasks import TensorTask
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.execute import answered, quotient
from shardmerge.methods.kernels.torch_order import torch_sums
from shardmerge.methods.kernels.torch_rows import ColumnSums
from shardmerge.methods.passes import Map, TorchSums, end_of
from shardmerge.methods.registry import kernel_of, passes_of, probing_of

#: Elements that are read at a time of what will be held, and threads that read.
_HOLDING, _READERS = 1 << 20, 4
#: Yields (place, values) of some elements, block by block: (first, count).
BlockReader = Callable[[int, int], Iterator[tuple[int, torch.Tensor]]]


class Maker:
    """Computes the whole calls of an output tensor.

    Args:
        files: That the job reads.
        tally: Where sums of squares go.
        place: Where the results will lie.
        buffers: That blocks are evaluated in.
        products: Holds the factors of low-rank products.
    """

    def __init__(
        self,
        files: InputFiles,
        tally: Tally,
        place: Host | Cuda,
        buffers: BlockBuffers,
        products: Products,
    ) -> None:
        self._files, self._tally = files, tally
        self._place, self._buffers, self._products = place, buffers, products
        self._staging = Staging(files, place)
        self._lock = threading.Lock()

    def begin(self, task: TensorTask) -> None:
        """Say which tensor is made next."""
        self._name, self._numerics = task.tensor.name, task.numerics
        self._squares = task.indirect
        self._probes = probed_calls(task.expression)
        self.maps: dict[ex.Call, Map] = {}

    def map(self, call: ex.Call) -> Map:
        """Return what a call that is computed in passes does to elements.

        It may read elements again, from any thread, so its maker's buffers must be its own.
        """
        if call not in self.maps:
            single = self._numerics.rounds_once
            code = sum_dtype(call) if single else stated_dtype(call.inputs[0])
            dtype = torch_dtype(code)
            inputs = self._held_blocks(call.inputs)

            def read(first: int, count: int) -> list[torch.Tensor]:
                with self._lock:
                    made = [_filled(blocks(first, count), count, dtype) for blocks in inputs]
                    self._place.mark()()  # others may compute in the same buffers next
                    return made

            step = max(1, self._buffers.length // BLOCK) * BLOCK
            rest = {"read": read, "step": step, "choose": tensor_mask}
            answer = partial(answered, shape=call.inputs[0].shape, **rest)
            begin = passes_of(call.method, self._numerics)
            self.maps[call] = end_of(begin_passes(call, begin, code), answer)
        return self.maps[call]

    def make(self, task: TensorTask) -> list[torch.Tensor]:
        """Return, flattened, what a tensor's evaluation needs held whole."""
        self.begin(task)
        results = self._held(task.leaves.held)
        self._place.wait()
        return results

    def _held(self, leaves: Sequence[HeldLeaf]) -> list[torch.Tensor]:
        made: dict[ex.Expression, torch.Tensor] = {}
        for leaf in leaves:
            whole = _whole(leaf)
            if whole not in made:
                made[whole] = self._make(whole)
        return [made[_whole(leaf)] for leaf in leaves]

    def _make(self, whole: ex.Expression) -> torch.Tensor:
        match whole:
            case ex.Call():
                return self._call(whole)
            case ex.Mean():
                return self._mean(whole)
            case ex.RowSums():
                return self._row_sums(whole)
        single = self._numerics.rounds_once
        return self._value(whole, torch_dtype(sum_dtype(whole)) if single else None)

    def _mean(self, mean: ex.Mean) -> torch.Tensor:
        """Return the mean of an expression's rows."""
        count, *row = mean.operand.shape
        width = math.prod(row)
        if not mean_streams(mean, self._numerics):
            rows = self._value(mean.operand, None).view(count, width)
            # a card would add them up in another order
            return rows.cpu().mean(dim=0).to(self._buffers.device)
        if not self._numerics.own_order:
            return self._torch_mean(mean, count, width)
        total = torch.zeros(width, dtype=torch.float64, device=self._buffers.device)
        # row after row, so that the sum's order does not depend on the size of a block
        blocks = self._blocks(mean.operand, self._squares)
        for first, values in blocks(0, ex.elements(mean.operand)):
            place = 0
            while place < len(values):
                column = (first + place) % width
                part = values[place : place + width - column]
                total[column : column + len(part)] += part
                place += len(part)
        return quotient(total, count).to(torch_dtype(sum_dtype(mean)))

    def _torch_mean(self, mean: ex.Mean, count: int, width: int) -> torch.Tensor:
        """Return the mean of rows that pass by, as torch makes it of all."""
        blocks = self._blocks(mean.operand, self._squares)

        def feed(sums: Sequence[ColumnSums], first: int, size: int) -> None:
            values = _filled(blocks(first, size), size, None)
            sums[0].add(values.float().cpu().numpy())

        wanted = TorchSums(lambda x: [], axis="first")
        (total,) = torch_sums(feed, (count, width), ["F32"], wanted)
        means = torch.from_numpy(total).float() / count
        return means.to(self._buffers.device, torch_dtype(stated_dtype(mean)))

    def _row_sums(self, node: ex.RowSums) -> torch.Tensor:
        """Return weighted sums of an expression's rows, which pass by in their order."""
        tables = (self._value(part, None).view(part.shape) for part in (node.rows, node.weights))
        sums = RowSummer(*tables, node.operand.shape, torch_dtype(sum_dtype(node)))
        read = self._blocks(node.operand, self._squares)
        for first, count in sums.bands(self._buffers.length):
            values = _filled(read(first * sums.width, count * sums.width), count * sums.width, None)
            sums.add(first, values.view(count, sums.width))
        dtype = sum_dtype(node) if self._numerics.rounds_once else stated_dtype(node)
        return sums.result.to(torch_dtype(dtype))

    def _call(self, call: ex.Call) -> torch.Tensor:
        kernel, _ = kernel_of(call.method, self._numerics)
        dtype = torch_dtype(sum_dtype(call)) if self._numerics.rounds_once else None
        tensors = [self._value(one, dtype).reshape(one.shape) for one in call.inputs]
        if not self._numerics.own_order:  # mergekit's bits are those of a processor
            tensors = [tensor.cpu() for tensor in tensors]
        with torch.no_grad():
            if is_probed(call):
                result = self._probed(call, tensors)
            else:
                make = make_natively if tensors[0].device.type == "cpu" else None
                result = kernel(replace(group_of(call, tensors), make_whole=make))
        if result.numel() != ex.elements(call):
            raise UserError(
                f"merge_method {call.method!r} made shape {list(result.shape)} instead of "
                f"{list(call.shape)}",
                f"tensor {self._name!r}",
            )
        return result.contiguous().view(-1).to(self._buffers.device)

    def _probed(self, call: ex.Call, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute a call, and record what its check verifies."""
        places = positions(sample_runs(self._name, ex.elements(call)))
        result, recorded = probing_of(call.method).kernel(group_of(call, tensors), places)
        self._tally.add_probes(self._name, self._probes.index(call), recorded)
        return result

    def _value(self, expression: ex.Expression, dtype: torch.dtype | None) -> torch.Tensor:
        """Return an expression whole, in a dtype or (None) in the one that it states."""
        if is_held(expression, self._numerics):
            result = self._call(expression)
            return result.to(dtype or result.dtype)
        count = ex.elements(expression)
        return _filled(self._blocks(expression, self._squares)(0, count), count, dtype)

    def _held_blocks(self, expressions: Sequence[ex.Expression]) -> list[BlockReader]:
        """Return the blocks of each expression, read only once where there is room to hold files.

        Only an accelerator has room: it passes over what it holds far faster than files are read.
        """
        found = [block_leaves(one, self._files.stored, self._numerics) for one in expressions]
        leaves = list(dict.fromkeys(leaf for one in found for leaf in one.files))
        locations = [apart(self._files.locate(leaf)) for leaf in leaves]
        count = ex.elements(expressions[0])
        held: dict[FileLeaf, torch.Tensor] = {}
        if self._place.room(sum(count * DTYPES[one.dtype].size for one in locations)):
            held = dict(
                zip(leaves, hold_whole(self._files, self._place, locations, count), strict=True)
            )
        return [self._blocks(one, {}, held) for one in expressions]

    def _blocks(
        self,
        expression: ex.Expression,
        squares: dict[ex.Delta, int],
        known: Mapping[FileLeaf, torch.Tensor] | None = None,
    ) -> BlockReader:
        """Return what yields (place, values) of some elements of an expression, block by block.

        Args:
            expression: What is evaluated.
            squares: Numbers of the task vectors whose sums of squares are wanted.
            known: What of its files is held.
        """
        leaves = block_leaves(expression, self._files.stored, self._numerics)
        shared = self._numerics, self._buffers, squares, self._products, self.map
        evaluator = Evaluator(expression, leaves, *shared)
        held, length = self._held(leaves.held), self._buffers.length
        locations = [apart(self._files.locate(leaf)) for leaf in leaves.files]

        def blocks(begin: int, count: int) -> Iterator[tuple[int, torch.Tensor]]:
            for place in range(0, count, length):
                first, size = begin + place, min(length, count - place)
                if known:
                    views = [known[leaf][first : first + size] for leaf in leaves.files]
                else:
                    views = self._staging.read(locations, first, size)
                views += held_views(leaves.held, held, first, size)
                block = Block(views, first, size)
                yield place, evaluator.run(block)
                for number, own, base in block.squares:
                    row = float(own), None if base is None else float(base)
                    self._tally.add_squares(self._name, number, *row)

        return blocks


class Staging:
    """Host buffers that files are read to, on the way to where is computed.

    For an accelerator there are two in turn, so that one is filled while the other is copied.

    Args:
        files: That the job reads.
        place: Where is computed.
    """

    def __init__(self, files: InputFiles, place: Host | Cuda) -> None:
        self._files, self._place = files, place
        empty = host_buffer(0, tensor=True, pinned=False)
        self._turns = deque([(empty, place.mark())] * (2 if place.pinned else 1))

    def read(self, locations: Sequence[AnyLocation], first: int, count: int) -> list[torch.Tensor]:
        """Return some elements of each tensor, where they can be computed with.

        They may be overwritten by the next that are read.
        """
        dtypes = [torch_dtype(location.dtype) for location in locations]
        room = [-(-count * dtype.itemsize // 64) * 64 for dtype in dtypes]
        starts = [0, *itertools.accumulate(room)]
        buffer, copied = self._turns.popleft()
        copied()
        if len(buffer.memory) < starts[-1]:
            buffer = host_buffer(starts[-1], tensor=True, pinned=self._place.pinned)
        views = []
        for location, dtype, start in zip(locations, dtypes, starts, strict=False):
            self._files.read_elements(location, first, count, buffer.memory[start:])
            views.append((start, start + count * dtype.itemsize, dtype))
        data = self._place.inputs(buffer, starts[-1])
        self._turns.append((buffer, self._place.mark()))
        return [data[start:end].view(dtype) for start, end, dtype in views]


def hold_whole(
    files: InputFiles, place: Host | Cuda, locations: Sequence[AnyLocation], count: int
) -> list[torch.Tensor]:
    """Return tensors whole where they can be computed with, each read by a thread of its own.

    Args:
        files: That the job reads.
        place: Where the tensors will lie.
        locations: Of the tensors.
        count: Elements of each.
    """

    def whole(location: AnyLocation) -> torch.Tensor:
        held = torch.empty(count, dtype=torch_dtype(location.dtype), device=place.device)
        staging = Staging(files, place)
        with place.active():
            for first in range(0, count, _HOLDING):
                size = min(_HOLDING, count - first)
                held[first : first + size] = staging.read([location], first, size)[0]
        return held

    with ThreadPoolExecutor(_READERS) as pool:
        held = list(pool.map(whole, locations))
    place.wait()
    return held


def held_views(
    leaves: Sequence[HeldLeaf], held: Sequence[torch.Tensor], first: int, count: int
) -> list[torch.Tensor]:
    """Return elements of each leaf that is held whole, or whose rows are taken of what is."""
    views = []
    for leaf, whole in zip(leaves, held, strict=True):
        if not isinstance(leaf, ex.Rows):
            views.append(whole[first : first + count])
            continue
        view = torch.empty(count, dtype=whole.dtype, device=whole.device)
        for place, length, source in row_ranges(
            leaf.table, math.prod(leaf.shape[1:]), first, count
        ):
            part = view[place : place + length]
            part.fill_(0.0) if source is None else part.copy_(whole[source : source + length])
        views.append(view)
    return views


def _filled(
    blocks: Iterator[tuple[int, torch.Tensor]], count: int, dtype: torch.dtype | None
) -> torch.Tensor:
    """Return blocks as one tensor, in a dtype or (None) in theirs."""
    target = None
    for place, values in blocks:
        if target is None:
            target = torch.empty(count, dtype=dtype or values.dtype, device=values.device)
        target[place : place + len(values)].copy_(values)
    return torch.empty(0, dtype=dtype) if target is None else target


def _whole(leaf: HeldLeaf) -> ex.Expression:
    return leaf.operand if isinstance(leaf, ex.Rows) else leaf


def has_nonfinite_source(task: TensorTask, files: InputFiles, chunk: int = 1 << 22) -> bool:
    """Whether any element that an output tensor is made from is infinite or NaN.

    Args:
        task: Of the tensor.
        files: That it is read from.
        chunk: Bytes that are looked at together.
    """
    memory = host_buffer(chunk, tensor=True)
    for leaf in task.reads:
        location, count = files.locate(leaf), ex.elements(leaf)
        size = DTYPES[location.dtype].size
        for first in range(0, count, chunk // size):
            length = min(chunk // size, count - first)
            files.read_elements(location, first, length, memory.memory)
            values = memory.tensor[: length * size].view(torch_dtype(location.dtype))
            if not values.isfinite().all():
                return True
    return False
