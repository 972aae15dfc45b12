"""Calls of kernels: what each is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardmerge.algebra import expression as ex
from shardmerge.methods.contract import BeginPasses, Group
from shardmerge.methods.passes import Passes

if TYPE_CHECKING:
    import torch


def begin_passes(call: ex.Call, begin: BeginPasses, dtype: str = "") -> Passes:
    """Return a call's passes, not begun.

    Args:
        call: The call.
        begin: Begins its method's passes.
        dtype: In mergekit numerics, code of the type that its inputs have.
    """
    return begin(replace(group_of(call), dtype=dtype))


def group_of(call: ex.Call, tensors: Sequence[torch.Tensor] = (), first: int = 0) -> Group:
    """Return what a call's kernel is given: whole tensors, or the blocks from an element on.

    Without tensors it has none, but their number.
    """
    none: list[Any] = [None] * len(call.inputs)
    return Group(
        tensors=tensors or none,
        base=call.base,
        parameters=dict(call.parameters),
        per_input=dict(call.per_input),
        name=call.tensor,
        models=call.models,
        offset=first,
        total=ex.elements(call),
        shape=tuple(call.inputs[0].shape),
    )
