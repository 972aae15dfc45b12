"""The norm of a whole task vector: a job reads two models, and writes one number."""

from __future__ import annotations

import contextlib
import math
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.algebra.lowering import reduction_of
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.errors import UserError
from shardmerge.base.files import fill_from
from shardmerge.base.safetensors import TensorEntry, read_header, write_header
from shardmerge.base.unfinished import Keeping, Unfinished
from shardmerge.engine import native
from shardmerge.engine.halves import halved_sum
from shardmerge.engine.locations import Location
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import Elements, ElementValue, Sums
from shardmerge.methods.program import TYPES

if TYPE_CHECKING:
    import torch


def measure_norm(
    tensors: Sequence[str | Sequence[str]],
    finetuned: Sequence[Path],
    base: Sequence[Path],
    output: Path,
    *,
    confirm: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keeping: Keeping = Keeping(),
) -> float:
    """Write the norm of the difference of two models; return it.

    Sums are in float64 and in a fixed order, so that the bits depend on no processor.

    Args:
        tensors: Names of the tensors in both, or a name in each.
        finetuned, base: safetensors files of the models.
        output: A file with the tensor ``norm``, float32 of one element.
        confirm: Called before the file is put in place.
        progress: Told how many tensors are done.
        keeping: How the sums of the first tensors are kept, and what may take them over.

    Raises:
        UserError: If a tensor is not there, shapes differ, or the norm is not finite.
    """
    with _OpenModels((finetuned, base)) as models, Unfinished(output, keeping, confirm) as work:
        squares = array("d", *map(bytes, work.arrays[:1]))
        for number, name in enumerate(tensors[len(squares) :], len(squares) + 1):
            pair = (name, name) if isinstance(name, str) else tuple(name)
            squares.append(_square(models, [models.entry(*one) for one in enumerate(pair)]))
            progress(number, len(tensors))
            work.keep({"tensors": number}, [squares.tobytes()])
        norm = math.sqrt(math.fsum(squares))
        with np.errstate(over="ignore"):
            value = np.array([norm]).astype("<f4")
        if not np.isfinite(value).all():
            work.restart()
            raise UserError(
                "the difference from the base model is infinite or NaN", str(finetuned[0].parent)
            )
        work.write(write_header([("norm", "F32", (1,))], {"format": "pt"}))
        work.write(value.tobytes())
    return norm


class _OpenModels(contextlib.ExitStack):
    """The open files of some models.

    Args:
        models: The safetensors files of each.
    """

    stored, beside = (), None

    def __init__(self, models: Iterable[Sequence[Path]]) -> None:
        super().__init__()
        self._files: list[tuple[int, Path]] = []
        self._folders: list[Path] = []
        self._entries: list[dict[str, tuple[TensorEntry, Location]]] = []
        with contextlib.ExitStack() as opened:
            for files in models:
                self._folders.append(files[0].parent)
                self._entries.append(self._table(files, opened))
            self.enter_context(opened.pop_all())

    def _table(
        self, files: Sequence[Path], opened: contextlib.ExitStack
    ) -> dict[str, tuple[TensorEntry, Location]]:
        found: dict[str, tuple[TensorEntry, Location]] = {}
        for path in files:
            number, header = len(self._files), read_header(path)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            self._files.append((fd, path))
            for name, entry in header.tensors.items():
                found[name] = entry, Location(number, entry.begin, entry.dtype)
        return found

    def entry(self, model: int, name: str) -> tuple[TensorEntry, Location]:
        """Return what a model's header says of a tensor, and where it lies."""
        if name not in self._entries[model]:
            raise UserError(f"has no tensor {name!r}", str(self._folders[model]))
        return self._entries[model][name]

    def read_elements(self, leaf: Location, first: int, count: int, into: memoryview) -> None:
        """Fill the beginning of a buffer with elements of a tensor."""

        def read(number: int, offset: int, part: memoryview) -> None:
            fill_from(*self._files[number], offset, part)

        leaf.read(read, first, count, into)


def _squares(x: Elements) -> list[ElementValue]:
    difference = x[0].double() - x[1].double()
    return [difference * difference]


def _square(models: _OpenModels, pair: Sequence[tuple[TensorEntry, Location]]) -> float:
    """Return the sum of squares of the difference of two tensors."""
    (own, _), (other, _) = pair
    shape, count = own.shape, math.prod(own.shape)
    if shape != other.shape:
        raise UserError(f"shapes differ: {list(shape)} and {list(other.shape)}")
    if not count:
        return 0.0
    places, codes = [place for _, place in pair], [one.dtype for one, _ in pair]
    if set(codes) <= set(TYPES) and native.is_usable():
        tiles = ReducedTiles(places, models, *reduction_of(codes, shape, _squares, "sums"))
        return float(halved_sum(tiles.table(count, range(-(-count // BLOCK))))[0])
    return _by_torch(models, places, shape)


def _by_torch(models: _OpenModels, places: Sequence[Location], shape: tuple[int, ...]) -> float:
    """Return the same of types, and on processors, that native code does not know."""
    import torch

    from shardmerge.methods.kernels.execute import answered

    def read(first: int, count: int) -> list[torch.Tensor]:
        made = []
        for place in places:
            memory = bytearray(count * DTYPES[place.dtype].size)
            models.read_elements(place, first, count, memoryview(memory))
            made.append(torch.frombuffer(memory, dtype=getattr(torch, DTYPES[place.dtype].name)))
        return made

    return float(answered(Sums(_squares), shape, read)[0, 0])
