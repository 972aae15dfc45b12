"""Calls of kernels: what each is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.algebra import expression as ex
from shardmerge.methods.contract import BeginPasses, Group
from shardmerge.methods.passes import Passes

if TYPE_CHECKING:
    import torch


def begin_passes(call: ex.Call, begin: BeginPasses) -> Passes:
    """Return a call's passes, not begun."""
    tensors: list[Any] = [None] * len(call.inputs)
    return begin(group_of(call, tensors))


def group_of(call: ex.Call, tensors: Sequence[torch.Tensor], first: int = 0) -> Group:
    """Return what a call's kernel is given: whole tensors, or the blocks from an element on."""
    return Group(
        tensors=tensors,
        base=call.base,
        parameters=dict(call.parameters),
        per_input=dict(call.per_input),
        name=call.tensor,
        models=call.models,
        offset=first,
        total=ex.elements(call),
        shape=tuple(call.inputs[0].shape),
    )
