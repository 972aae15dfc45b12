"""What a job's memory is made of, and how much it will take: known before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import (
    FileLeaf,
    HeldLeaf,
    block_leaves,
    chooses,
    is_held,
    mean_streams,
    stated_dtype,
    sum_dtype,
)
from shardmerge.algebra.lowering import is_native
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.engine.arranging import arranging_bytes
from shardmerge.engine.decoding import decoding_bytes
from shardmerge.engine.tasks import TensorTask, is_prepared, uses_card
from shardmerge.methods.program import LANES
from shardmerge.methods.registry import workspace_elements

MIB = 1 << 20
#: Resident memory of any job, beside what it holds: torch is two thirds of it.
STREAMING_BYTES = 400_000_000
#: What the passes of a tensor take beside what they hold, or torch to make a whole one.
_PASSES = 48 * MIB
#: What a CUDA context and its libraries add on the host.
CUDA_BYTES = 3 << 30
#: Bytes of an element while it is chosen by torch's order, and where torch itself does it.
_CHOOSING, _BY_TORCH = 4, 24
#: Elements at most that native code chooses from, for each key of which only some are chosen: their
#: numbers have 32 bits, of which keys take half.
CHOOSABLE = (1 << 31) - (1 << 24)
#: Elements whose numbers are held at once while they are chosen: of tensors that have no more; of
#: larger ones the fewer the more memory their masks take.
_CHOSEN_AT_ONCE = 24 << 20
#: Elements of tensors whose masks lie in memory, 16 MiB each; those of larger ones lie in files.
MASKED = 1 << 27
#: Of so many elements a byte counts those that change place in a sort of what is not held.
_COUNTED = 32
#: What is held begins at multiples of so many bytes.
_APART = 4096


@dataclass(frozen=True)
class Tuning:
    """Sizes that decide speed and memory, never the bytes of the output.

    Args:
        block: Elements combined at a time: the float32 buffers of a block stay in the cache.
        device_block: The same on an accelerator.
        slots: Windows in flight between reader, compute threads, writer and hasher.
        buffers: Bytes that all slots may take together.
        device_buffers: The same where an accelerator copies from and to them.
        held: Bytes of a tensor's sources up to which they are held between passes and result.
        lane: Bytes that an elementwise kernel may take for one block.
        windows: Bytes of output that a window may have, the largest that fits is taken.
    """

    block: int = 1 << 17
    device_block: int = 1 << 22
    slots: int = 10
    buffers: int = 48 * MIB
    device_buffers: int = 192 * MIB
    held: int = 97 * MIB
    lane: int = 10 * MIB
    windows: tuple[int, ...] = tuple(8 * MIB >> k for k in range(8))

    @property
    def lanes(self) -> int:
        """Compute threads at most: reader, writer and hasher need slots too."""
        return self.slots - 4


TUNING = Tuning()


def ready_places(threads: int) -> int:
    """Return how many tensors are made ready at once for so many compute threads.

    One more than there are threads, since one tensor's elements are made meanwhile.
    """
    return threads + 1 if threads > 1 else 1


def workspace_bytes(tasks: Sequence[TensorTask], device: str = "cpu") -> int:
    """Return the peak resident memory that a job is given, in bytes.

    It is one constant for what streams. A merge method that must see whole tensors adds the
    largest tensor's inputs, result and workspace (``registry.workspace_elements``); adapters add
    the factors of one tensor for each thread; quantised weights what decodes a piece of one; a
    choice by torch's order a number of each element of a tensor, and masks; methods in passes the
    sources of the largest tensor whose sources are held.

    Args:
        tasks: Of a shard's tensors.
        device: ``cpu``, ``cuda`` or ``cuda:N``; of what a card computes, whole tensors lie in its
            memory too.
    """
    factors = max((_factors(task.products) for task in tasks), default=0)
    # the reader's, beside that of who makes a whole tensor
    held = TUNING.lanes * factors + _most_decoding(tasks) + _readiness_bytes(tasks)
    return STREAMING_BYTES + held + (CUDA_BYTES if uses_card(tasks, device) else 0)


def ahead_bytes(tasks: Sequence[TensorTask], device: str = "cpu") -> int:
    """Return the bytes that each tensor more takes that is made ready at once.

    They are 0 if nothing is made ready, or on a card: more compute threads gain little there.

    Args:
        tasks: Of a shard's tensors.
        device: As of ``workspace_bytes``.
    """
    if uses_card(tasks, device) or not any(map(is_prepared, tasks)):
        return 0
    return _PASSES + _readiness_bytes(tasks)


def _readiness_bytes(tasks: Sequence[TensorTask]) -> int:
    """Return what a tensor takes at most that is made ready, beside the buffers of its passes."""
    whole = max((_held_peak(task.leaves.held, task.numerics) for task in tasks), default=0)
    chosen = max((choosing_bytes(one, t.numerics) for t in tasks for one in t.calls), default=0)
    between = max((held_bytes(task, TUNING.held) for task in tasks), default=0)
    return whole + chosen + between + _most_decoding(tasks)


def _most_decoding(tasks: Sequence[TensorTask]) -> int:
    return max((_decoding(task) for task in tasks), default=0)


def held_bytes(task: TensorTask, most: int) -> int:
    """Return the bytes of a tensor's sources if they are held between passes and result, else 0.

    They are where native code makes both, and passes see whole tensors.

    Args:
        task: Of the tensor.
        most: Bytes that they may take.
    """
    if task.kind != "native" or not task.spreads:
        return 0
    count = math.prod(task.tensor.shape)
    size = sum(held_leaf_bytes(leaf, count) for leaf in task.leaves.files) if count else 0
    return size if size <= most else 0


def held_leaf_bytes(leaf: FileLeaf, count: int) -> int:
    """Return the bytes that a leaf of so many elements takes where it is held.

    Behind the last one whole vectors can be read, and the next leaf begins with a page.
    """
    size = DTYPES[leaf.dtype].size
    return -(-(count + LANES) * size // _APART) * _APART


def block_length(tasks: Sequence[TensorTask], tuning: Tuning = TUNING) -> int:
    """Return the elements of a block, so few that elementwise kernels stay in a lane's share."""
    shapes = {
        (part.method, task.numerics, len(part.inputs), DTYPES[sum_dtype(part)].size)
        for task in tasks
        for part in ex.walk(task.expression)
        if isinstance(part, ex.Call) and not is_held(part, task.numerics)
    }

    def need(length: int) -> int:
        return max(
            (
                (workspace_elements(name, numerics, (length,), count) + (count + 2) * length) * size
                for name, numerics, count, size in shapes
            ),
            default=0,
        )

    length = tuning.block
    while length > 4096 and need(length) > tuning.lane:
        length //= 2
    return length


def chosen_at_once(count: int) -> int:
    """Return of how many elements of a tensor the numbers are held while they are chosen.

    Args:
        count: The tensor's elements.
    """
    if count <= _CHOSEN_AT_ONCE:
        return count
    return _CHOSEN_AT_ONCE - (count // 16 if count <= MASKED else 0)


def choosing_bytes(call: ex.Call, numerics: Numerics) -> int:
    """Return the bytes that a call's choices by torch's order take, 0 if there are none.

    The numbers of one input's elements are held at a time, of large tensors those of some. The
    masks of all inputs are held while the tensor's windows are made, beside those of the tensors
    before it; those of very large tensors lie in files.
    """
    if not chooses(call, numerics):
        return 0
    count, masks = ex.elements(call.inputs[0]), len(call.inputs) - (call.base is not None)
    own = count <= CHOOSABLE and is_native(call, (), numerics)
    chosen = _CHOOSING * chosen_at_once(count) + count // _COUNTED if own else _BY_TORCH * count
    return chosen + masks * 2 * min(count, MASKED) // 8


def _decoding(task: TensorTask) -> int:
    leaves = (leaf.operand if isinstance(leaf, ex.Rows) else leaf for leaf in task.reads)
    found = list(leaves)
    decoded = (decoding_bytes(one) for one in found if isinstance(one, ex.Decoded))
    # each keeps its band from one window to the next
    arranged = sum(arranging_bytes(one) for one in found if isinstance(one, ex.Arranged))
    return max(decoded, default=0) + arranged


def _factors(products: Iterable[ex.LowRank]) -> int:
    """Bytes of the factors that are held for products, as read and as used."""
    return sum(
        ex.elements(factor) * (DTYPES[product.dtype].size + DTYPES[factor.dtype].size)
        for product in products
        for factor in (product.b, product.a)
    )


def _held_peak(leaves: Iterable[HeldLeaf], numerics: Numerics) -> int:
    """Peak of what is held whole, made one after the other."""
    held = peak = 0
    for leaf in leaves:
        whole = leaf.operand if isinstance(leaf, ex.Rows) else leaf
        peak = max(peak, held + _whole_peak(whole, numerics))
        held += _size(whole, numerics)
    return peak


def _whole_peak(whole: ex.Expression, numerics: Numerics) -> int:
    if isinstance(whole, ex.Call):
        return _call_peak(whole, numerics)
    if isinstance(whole, ex.RowSums):
        return _row_sums_peak(whole, numerics)
    if not isinstance(whole, ex.Mean):
        return _inner_peak(whole, numerics) + _size(whole, numerics)
    rows = 0 if mean_streams(whole, numerics) else _size(whole.operand, numerics)
    return _inner_peak(whole.operand, numerics) + rows


def _row_sums_peak(node: ex.RowSums, numerics: Numerics) -> int:
    """Peak while sums of rows are made: the sums, their tables in order, a band of rows."""
    width = math.prod(node.shape[1:])
    wide = max(4, DTYPES[sum_dtype(node)].size)
    tables = 64 * ex.elements(node.rows)
    band = 8 * wide * max(width, TUNING.block)
    made = wide * ex.elements(node) + (0 if numerics.rounds_once else _size(node, numerics))
    return _inner_peak(node.operand, numerics) + tables + band + made


def _inner_peak(expression: ex.Expression, numerics: Numerics) -> int:
    """Peak of what is held whole while an expression is evaluated block by block."""
    return _held_peak(block_leaves(expression, (), numerics).held, numerics)


def _call_peak(call: ex.Call, numerics: Numerics) -> int:
    """Peak while a whole call is made: inputs one after the other, then the kernel."""
    held = peak = 0
    for operand in call.inputs:
        own = 0 if is_held(operand, numerics) else _size(operand, numerics, call)
        peak = max(peak, held + _inner_peak(operand, numerics) + own)
        held += _size(operand, numerics, call)
    shape = call.inputs[0].shape
    kernel = workspace_elements(call.method, numerics, shape, len(call.inputs))
    wide = max(4, DTYPES[_dtype(call.inputs[0], numerics, call)].size)
    return max(peak, held + kernel * wide + _size(call, numerics))


def _size(expression: ex.Expression, numerics: Numerics, call: ex.Call | None = None) -> int:
    return ex.elements(expression) * DTYPES[_dtype(expression, numerics, call)].size


def _dtype(expression: ex.Expression, numerics: Numerics, call: ex.Call | None = None) -> str:
    """Return the dtype that an expression is held in, as an input of a call if one is given."""
    if numerics.rounds_once:
        return sum_dtype(call or expression)
    return stated_dtype(expression)
