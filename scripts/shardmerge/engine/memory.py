"""What a job's memory is made of, and how much it will take: known before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import combine, is_whole, leaves, low_ranks, stated_dtype
from shardmerge.algebra.spec import ShardSpec
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.methods.registry import workspace_elements

MIB = 1 << 20
#: Resident memory of any job that holds no whole tensor: torch is two thirds of it.
STREAMING_BYTES = 400_000_000
#: What a CUDA context and its libraries add on the host.
CUDA_BYTES = 3 << 30


@dataclass(frozen=True)
class Tuning:
    """Sizes that decide speed and memory, never the bytes of the output.

    Args:
        block: Elements combined at a time: the float32 buffers of a block stay in the cache.
        device_block: The same on an accelerator.
        slots: Windows in flight between reader, compute threads, writer and hasher.
        buffers: Bytes that all slots may take together.
        lane: Bytes that an elementwise kernel may take for one block.
        windows: Bytes of output that a window may have, the largest that fits is taken.
    """

    block: int = 1 << 17
    device_block: int = 1 << 21
    slots: int = 10
    buffers: int = 48 * MIB
    lane: int = 12 * MIB
    windows: tuple[int, ...] = tuple(8 * MIB >> k for k in range(8))

    @property
    def lanes(self) -> int:
        """Compute threads at most: reader, writer and hasher need slots too."""
        return self.slots - 4


TUNING = Tuning()


def workspace_bytes(spec: ShardSpec, device: str = "cpu") -> int:
    """Return the peak resident memory that a job is given, in bytes.

    It is one constant for what streams. A merge method that must see whole tensors adds the
    largest tensor's inputs, result and workspace (``registry.workspace_elements``); adapters add
    the factors of one tensor for each thread.

    Args:
        spec: The shard.
        device: ``cpu``, ``cuda`` or ``cuda:N``; on a card whole tensors lie in its memory too.
    """
    whole = max((_tensor_peak(t.expression, spec.numerics) for t in spec.tensors), default=0)
    factors = max((_factors(t.expression) for t in spec.tensors), default=0)
    held = TUNING.lanes * factors + whole
    return STREAMING_BYTES + held + (CUDA_BYTES if device != "cpu" else 0)


def block_length(spec: ShardSpec, tuning: Tuning = TUNING) -> int:
    """Return the elements of a block, so few that elementwise kernels stay in a lane's share."""
    shapes = {
        (part.method, len(part.inputs), DTYPES[combine(part)].size)
        for tensor in spec.tensors
        for part in ex.walk(tensor.expression)
        if isinstance(part, ex.Call) and not is_whole(part, spec.numerics)
    }

    def need(length: int) -> int:
        return max(
            (
                (workspace_elements(name, spec.numerics, (length,), count) + (count + 2) * length)
                * size
                for name, count, size in shapes
            ),
            default=0,
        )

    length = tuning.block
    while length > 4096 and need(length) > tuning.lane:
        length //= 2
    return length


def _factors(expression: ex.Expression) -> int:
    """Bytes of the factors that are held while an expression is evaluated, as read and as used."""
    return sum(
        ex.elements(factor) * (DTYPES[product.dtype].size + DTYPES[factor.dtype].size)
        for product in low_ranks(expression)
        for factor in (product.b, product.a)
    )


def _tensor_peak(expression: ex.Expression, numerics: Numerics) -> int:
    """Peak of the whole tensors held while an expression is evaluated block by block."""
    held = peak = 0
    for leaf in leaves(expression, (), numerics)[1]:
        whole = leaf.operand if isinstance(leaf, ex.Rows) else leaf
        peak = max(peak, held + _held_peak(whole, numerics))
        held += _size(whole, numerics)
    return peak


def _held_peak(whole: ex.Expression, numerics: Numerics) -> int:
    if isinstance(whole, ex.Call):
        return _call_peak(whole, numerics)
    if not isinstance(whole, ex.Mean):
        return _tensor_peak(whole, numerics) + _size(whole, numerics)
    # a mean of rows streams, but mergekit's rounding needs all of them
    rows = 0 if numerics.own_order else _size(whole.operand, numerics)
    return _tensor_peak(whole.operand, numerics) + rows


def _call_peak(call: ex.Call, numerics: Numerics) -> int:
    """Peak while a whole call is made: inputs one after the other, then the kernel."""
    held = peak = 0
    for operand in call.inputs:
        own = 0 if is_whole(operand, numerics) else _size(operand, numerics, call)
        peak = max(peak, held + _tensor_peak(operand, numerics) + own)
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
        return combine(call or expression)
    return stated_dtype(expression)
