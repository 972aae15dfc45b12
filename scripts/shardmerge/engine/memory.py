"""What a job's memory is made of, and how much it will take: known before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from shardmerge import expression as ex
from shardmerge.dtypes import DTYPES
from shardmerge.engine.algebra import combine, is_whole, leaves
from shardmerge.registry import method
from shardmerge.spec import ShardSpec

KIB, MIB = 1 << 10, 1 << 20
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
        windows: Bytes of output that a window may have, the largest that fits is taken.
    """

    block: int = 1 << 17
    device_block: int = 1 << 21
    slots: int = 10
    buffers: int = 80 * MIB
    windows: tuple[int, ...] = tuple(8 * MIB >> k for k in range(8))


TUNING = Tuning()


def workspace_bytes(spec: ShardSpec, device: str = "cpu") -> int:
    """Return the peak resident memory that a job is given, in bytes.

    It is one constant for what streams. A merge method that must see whole tensors adds the
    largest tensor's inputs, result and workspace (``registry.merge_method``).

    Args:
        spec: The shard.
        device: ``cpu`` or ``cuda``; on the latter whole tensors lie in the device's memory too.
    """
    whole = max((_tensor_peak(t.expression, spec.numerics) for t in spec.tensors), default=0)
    return STREAMING_BYTES + whole + (CUDA_BYTES if device == "cuda" else 0)


def _size(expression: ex.Expression) -> int:
    return ex.elements(expression) * DTYPES[combine(expression)].size


def _tensor_peak(expression: ex.Expression, numerics: str) -> int:
    """Peak of the whole tensors held while an expression is evaluated block by block."""
    held = peak = 0
    for call in leaves(expression, (), numerics)[1]:
        peak = max(peak, held + _call_peak(call, numerics))
        held += _size(call)
    return peak


def _call_peak(call: ex.Call, numerics: str) -> int:
    """Peak while a whole call is made: inputs one after the other, then the kernel."""
    held = peak = 0
    for operand in call.inputs:
        own = 0 if is_whole(operand, numerics) else _size(operand)
        peak = max(peak, held + _tensor_peak(operand, numerics) + own)
        held += _size(operand)
    kernel = int(method(call.method).workspace * 4 * max(map(ex.elements, call.inputs)))
    return max(peak, held + kernel + _size(call))
