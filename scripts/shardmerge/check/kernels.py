"""Kernels of methods, run for a check: on sampled elements, or on whole tensors that are small."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.samples import WHOLE, Runs
from shardmerge.base.numerics import Numerics
from shardmerge.check.float_formats import decoded
from shardmerge.methods.registry import kernel_of

if TYPE_CHECKING:
    import torch

#: Returns elements of a source tensor or stored task vector as they lie in the file.
Read = Callable[["ex.Source | ex.Decoded | ex.Arranged | ex.Delta", Runs], np.ndarray]


class TooLargeError(Exception):
    """A method must see a whole tensor that has more than WHOLE elements."""


class UndecidedError(Exception):
    """A method's result depends on the library that decomposes its inputs, without a bound."""


def run_kernel(
    call: ex.Call, tensors: list[torch.Tensor], runs: Runs, whole: bool, numerics: Numerics
) -> torch.Tensor:
    """Return a kernel's result, flat: run by run, or once for whole tensors.

    Args:
        call: What is computed.
        tensors: Elements of its inputs.
        runs: Which elements they are.
        whole: They are all elements.
        numerics: Whose kernel it is.
    """
    kernel, _ = kernel_of(call.method, numerics)
    if whole:
        shaped = [t.reshape(i.shape) for t, i in zip(tensors, call.inputs, strict=True)]
        return kernel(group_of(call, shaped)).reshape(-1)
    results, place = [], 0
    for first, count in runs:
        blocks = [tensor[place : place + count] for tensor in tensors]
        results.append(kernel(group_of(call, blocks, first)).clone())
        place += count
    return load_torch().cat(results) if results else tensors[0]


def needed(operand: ex.Expression, call: ex.Call, runs: Runs, whole: bool) -> Runs:
    """Return which elements of an operand a call needs.

    Raises:
        TooLargeError: If these are all of more than WHOLE elements.
    """
    if not whole:
        return runs
    all_of(call)
    return all_of(operand)


def all_of(expression: ex.Expression) -> Runs:
    """Return the run of all elements.

    Raises:
        TooLargeError: If these are more than WHOLE.
    """
    if ex.elements(expression) > WHOLE:
        raise TooLargeError
    return ((0, ex.elements(expression)),)


def factor_of(read: Read, factor: ex.Source) -> np.ndarray:
    """Return a whole factor of a low-rank product, float64 of its shape."""
    stored = read(factor, ((0, ex.elements(factor)),))
    return decoded(stored, factor.dtype).reshape(factor.shape)


@cache
def load_torch() -> ModuleType:
    """Return torch, on one thread: the engine's kernels run on one, and sums keep their order."""
    import torch

    torch.set_num_threads(1)
    return torch
