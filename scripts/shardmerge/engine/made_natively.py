"""Elements of tensors that torch holds, made by native code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from shardmerge.algebra.lowering import program_of
from shardmerge.base.dtypes import DTYPES, dtype_code
from shardmerge.engine import native
from shardmerge.methods.kernels.execute import TorchElements, make_whole
from shardmerge.methods.passes import Map
from shardmerge.methods.program import Program
from shardmerge.methods.symbolic import Given


def make_natively(function: Map, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Make each element of a tensor in host memory by a function, as ``MakeWhole`` says.

    Torch does where there is no native code for it.
    """
    code, *codes = map(_code, (out, *tensors))
    made = program_of(codes, tuple(out.shape), function, code) if native.is_usable() else None
    if made is None:
        make_whole(function, tensors, out)
    elif out.numel():
        program, given = made
        places = [tensor.data_ptr() for tensor in tensors]
        native.native(program).run(out.data_ptr(), places, out.numel(), given.constants)


class MadeBlocks:
    """Makes blocks of what a function makes of tensors in host memory, by torch where it must.

    Args:
        function: Returns an element.
        shape: Of the tensors.
        narrow: What is made of values is rounded to their type.
    """

    def __init__(self, function: Map, shape: tuple[int, ...], *, narrow: bool) -> None:
        self._function, self._shape, self._narrow = function, shape, narrow
        self._codes: list[str] | None = None
        self._made: tuple[Program, Given] | None = None

    def __call__(
        self, tensors: Sequence[torch.Tensor], first: int, runs: Sequence[tuple[int, int]] = ()
    ) -> torch.Tensor:
        """Return some elements.

        Args:
            tensors: Elements of each, one-dimensional.
            first, runs: Which they are, as of ``TorchElements``.
        """
        made = self._lowered(tensors)
        if made is None or not all(one.is_contiguous() for one in tensors):
            return self._function(TorchElements(tensors, self._shape, first, runs))
        program, given = made
        output = DTYPES[program.output]
        out = torch.empty(len(tensors[0]), dtype=getattr(torch, output.name))
        code, done = native.native(program), 0
        for count, constants in _alike(given, runs or [(first, len(out))]):
            places = [one.data_ptr() + done * one.itemsize for one in tensors]
            code.run(out.data_ptr() + done * output.size, places, count, constants)
            done += count
        return out

    def _lowered(self, tensors: Sequence[torch.Tensor]) -> tuple[Program, Given] | None:
        """Return the steps; none where numbers beside are needed of each element."""
        codes = list(map(_code, tensors))
        if codes != self._codes:
            self._codes, narrow = codes, self._narrow
            made = program_of(codes, self._shape, self._function, narrow=narrow)
            usable = native.is_usable() and made and not (made[1].loads or made[1].tables)
            self._made = made if usable else None
        return self._made


def _alike(given: Given, runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[float]]]:
    """Yield (number, constants) of consecutive elements of runs that have the same constants."""
    runs = [run for run in runs if run[1]]
    if runs and not given.moving:
        yield sum(count for _, count in runs), given.constants
        return
    pieces = (piece for run in runs for piece in given.pieces(*run))
    for constants, group in groupby(pieces, key=lambda piece: piece[2]):
        yield sum(count for _, count, _ in group), constants


def _code(tensor: torch.Tensor) -> str:
    return dtype_code(str(tensor.dtype).removeprefix("torch."))
