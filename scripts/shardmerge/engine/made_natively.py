"""Elements of whole tensors that torch holds, made by native code."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shardmerge.algebra.lowering import program_of
from shardmerge.base.dtypes import dtype_code
from shardmerge.engine import native
from shardmerge.methods.kernels.execute import make_whole
from shardmerge.methods.passes import Map


def make_natively(function: Map, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Make each element of a tensor in host memory by a function, as ``MakeWhole`` says.

    Torch does where there is no native code for it.
    """
    code, *codes = (dtype_code(str(one.dtype).removeprefix("torch.")) for one in (out, *tensors))
    made = program_of(codes, tuple(out.shape), function, code) if native.is_usable() else None
    if made is None:
        make_whole(function, tensors, out)
    elif out.numel():
        program, given = made
        places = [tensor.data_ptr() for tensor in tensors]
        native.native(program).run(out.data_ptr(), places, out.numel(), given.constants)
