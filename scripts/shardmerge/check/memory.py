"""What the check of a shard will take, memory and torch: known before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import in_passes, is_whole
from shardmerge.algebra.lowering import is_native
from shardmerge.algebra.samples import WHOLE, is_probed
from shardmerge.base.numerics import Numerics
from shardmerge.engine.arranging import arranging_bytes
from shardmerge.engine.decoding import decoding_bytes
from shardmerge.engine.memory import STREAMING_BYTES, choosing_bytes
from shardmerge.engine.tasks import TensorTask, needs_torch
from shardmerge.methods.registry import workspace_elements

#: Elements of each tensor that are held at a time where what was recorded is verified.
STRIPE = 1 << 18
#: An estimate is a value and its error in float64; what is read has its stored form besides.
_ESTIMATE, _READ = 16, 24
#: The mean of a tensor's rows is summed over pieces of so many elements' worth of arrays.
_MEAN = (1 << 22) * (2 * _ESTIMATE + _READ)


def check_bytes(tasks: Iterable[TensorTask]) -> int:
    """Return the peak resident memory that the check of a shard is given, in bytes.

    Samples take next to nothing. A merge method that must see whole tensors is recomputed in
    float64 from all elements of its inputs, for tensors of up to ``WHOLE`` elements. What was
    recorded of larger ones is verified in a pass over stripes.

    Args:
        tasks: Of the shard's tensors.
    """
    peaks = (_peak(task.expression, task.numerics, whole=False) for task in tasks)
    return STREAMING_BYTES + max(peaks, default=0)


def check_needs_torch(tasks: Sequence[TensorTask]) -> bool:
    """Whether the check of a shard imports torch, where there is native code.

    In mergekit numerics torch makes the samples of what is neither a sum nor made in passes.

    Args:
        tasks: Of the shard's tensors.
    """
    stated = [t for t in tasks if not (t.kind == "copy" or t.numerics.rounds_once)]
    if needs_torch(tasks) or not stated:
        return needs_torch(tasks)
    from shardmerge.check.mergekit import is_known  # imports numpy, which most plans do without

    return not all(is_known(task.expression) for task in stated)


def _streams(call: ex.Call, numerics: Numerics) -> bool:
    """Whether native code finds what depends on the whole of a call's inputs."""
    return in_passes(call, numerics) and is_native(call, (), numerics)


def _probing(call: ex.Call) -> int:
    """Peak of the arrays of a pass over stripes of a call's inputs, and of the written tensor."""
    number, widths = len(call.inputs), [one.shape[-1] for one in call.inputs]
    stripe = max(STRIPE, *widths)
    inner = max(sum(1 for _ in ex.walk(one)) for one in call.inputs)
    vectors = max(max(one.shape[-2:]) for one in call.inputs)
    return stripe * (8 * (number + 8) + (_ESTIMATE + _READ) * inner) + vectors * 8 * (
        24 + 6 * number
    )


def _peak(node: ex.Expression, numerics: Numerics, *, whole: bool) -> int:
    """Peak of the arrays of an expression's evaluation, over whole tensors or over samples."""
    if isinstance(node, ex.Decoded):
        return decoding_bytes(node) + (_READ * ex.elements(node) if whole else 0)
    if isinstance(node, ex.Arranged):
        return arranging_bytes(node) + (_READ * ex.elements(node) if whole else 0)
    operands = ex.operands(node)
    own = isinstance(node, ex.Call) and is_whole(node, numerics) and not _streams(node, numerics)
    count = ex.elements(node)
    if own and max(count, *map(ex.elements, operands)) > WHOLE:
        return _probing(node) if is_probed(node) else 0
    whole = whole or own
    inner = max((_peak(operand, numerics, whole=whole) for operand in operands), default=0)
    if isinstance(node, ex.Call) and _streams(node, numerics):
        inner = max(inner, choosing_bytes(node, numerics))
    if isinstance(node, ex.Mean):
        inner += _MEAN
    if isinstance(node, ex.RowSums):
        inner += _READ * ex.elements(node.rows)
    if not whole:
        return inner
    if not operands:
        return _READ * count
    held = sum(_ESTIMATE * ex.elements(operand) for operand in operands)
    made = 2 * _ESTIMATE * count
    if isinstance(node, ex.Call):
        kernel = workspace_elements(node.method, numerics, node.inputs[0].shape, len(operands))
        made += 8 * kernel + held // 2  # the kernel's own copies of its inputs
    return held + max(inner, made)
