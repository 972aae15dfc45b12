"""What the engine has to do for each output tensor, found once. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import (
    FileLeaf,
    Leaves,
    block_leaves,
    calls_in_passes,
    chooses,
    file_leaves,
    is_copied,
    is_whole,
    low_ranks,
    simplify,
    stated_dtype,
)
from shardmerge.algebra.lowering import Steps, steps_for
from shardmerge.algebra.patterns import pattern
from shardmerge.algebra.spec import OutputTensor, ShardSpec
from shardmerge.base.numerics import Numerics
from shardmerge.methods.registry import passes_use_torch

#: How a tensor is made: copied from a file, by native code, by torch block by block, or by torch
#: from something that is held whole.
Kind = Literal["copy", "native", "blocks", "whole"]


@dataclass(frozen=True)
class TensorTask:
    """What is done for one output tensor.

    Args:
        tensor: The output tensor.
        expression: What it is, simplified.
        kind: How it is made. Torch makes what is ``native`` where there is no native code.
        reads: All that is read for it, also factors and what lies under whole calls.
        leaves: What its evaluation starts from.
        products: Its products of small factors.
        numbers: Of its task vectors, in order of first use.
        calls: Those that are computed in passes block by block, inner ones first.
        steps: For native code; None for every other kind. Where there are such calls, only what
            they do once their reductions are known (``native_steps.steps_in_passes``) is computed.
        numerics: How values are rounded, and by which kernels methods are computed.
    """

    tensor: OutputTensor
    expression: ex.Expression
    kind: Kind
    reads: tuple[FileLeaf, ...]
    leaves: Leaves
    products: tuple[ex.LowRank, ...]
    numbers: Mapping[ex.Delta, int]
    calls: tuple[ex.Call, ...]
    steps: Steps | None
    numerics: Numerics

    @property
    def direct(self) -> dict[ex.Delta, int]:
        """Numbers of the task vectors that are met block by block."""
        return {delta: self.numbers[delta] for delta in self.leaves.deltas}

    @property
    def spreads(self) -> bool:
        """Whether an infinite or NaN element of a source may reach any other of the result."""
        return bool(self.leaves.held) or any(is_whole(one, self.numerics) for one in self.calls)

    @property
    def indirect(self) -> dict[ex.Delta, int]:
        """Numbers of the task vectors under what is held whole."""
        direct = self.direct
        return {delta: number for delta, number in self.numbers.items() if delta not in direct}


def make_tasks(spec: ShardSpec, stored: Collection[ex.Delta] = ()) -> tuple[TensorTask, ...]:
    """Return the tasks of a shard's tensors, in their order.

    Args:
        spec: The shard.
        stored: Task vectors that are read and not computed.
    """
    return tuple(make_task(tensor, stored, spec.numerics) for tensor in spec.tensors)


def one_task_of_each(spec: ShardSpec, stored: Collection[ex.Delta] = ()) -> tuple[TensorTask, ...]:
    """Return a task of each kind among a shard's: others differ in names alone.

    Args:
        spec, stored: As of ``make_tasks``.
    """
    kinds: dict[tuple[Any, ...], OutputTensor] = {}
    for tensor in spec.tensors:
        key: tuple[Any, ...] = (tensor.dtype, pattern(tensor.expression))
        if stored:
            key += tuple([delta in stored for delta in ex.deltas(tensor.expression)])
        kinds.setdefault(key, tensor)
    return tuple(make_task(tensor, stored, spec.numerics) for tensor in kinds.values())


def make_task(tensor: OutputTensor, stored: Collection[ex.Delta], numerics: Numerics) -> TensorTask:
    """Return the task of an output tensor.

    Args:
        tensor: The output tensor.
        stored: Task vectors that are read and not computed.
        numerics: How values are rounded, and by which kernels methods are computed.
    """
    expression = simplify(tensor.expression)
    leaves = block_leaves(expression, stored, numerics)
    numbers = {delta: number for number, delta in enumerate(ex.deltas(expression))}
    steps = None
    if is_copied(expression, tensor.dtype, stored):
        kind: Kind = "copy"
    elif leaves.held:
        kind = "whole"
    else:
        direct = {delta: numbers[delta] for delta in leaves.deltas}
        steps = steps_for(expression, tensor.dtype, leaves, direct, numerics)
        kind = "native" if steps else "blocks"
    reads = file_leaves(expression, stored)
    products, calls = low_ranks(expression), calls_in_passes(expression, numerics)
    found = reads, leaves, products, numbers, calls, steps
    return TensorTask(tensor, expression, kind, *found, numerics)


def is_prepared(task: TensorTask) -> bool:
    """Whether something of a tensor is made before its elements: passes, or what is held whole."""
    return bool(task.calls or task.leaves.held)


def needs_torch(tasks: Sequence[TensorTask]) -> bool:
    """Whether a job imports torch, where there is native code.

    It does for a tensor that is neither a copy nor what native code computes, and where what a
    method's passes end with is found by torch.
    """
    return any(
        _by_torch(task) or any(call_needs_torch(call, task.numerics) for call in task.calls)
        for task in tasks
    )


def uses_card(tasks: Sequence[TensorTask], device: str) -> bool:
    """Whether a job computes on an accelerator, where there is native code.

    What native code computes stays on the processor: for most methods one core takes less time than
    a job takes to open a card and to bring the bytes there and back.

    Args:
        tasks: Of the job's tensors.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
    """
    return device != "cpu" and any(_by_torch(task) for task in tasks)


def _by_torch(task: TensorTask) -> bool:
    return task.kind not in ("copy", "native")


def call_needs_torch(call: ex.Call, numerics: Numerics) -> bool:
    """Whether the passes of a call in passes import torch, where there is native code."""
    dtype = stated_dtype(call.inputs[0])
    return passes_use_torch(call.method, numerics, dtype) or chooses(call, numerics)
