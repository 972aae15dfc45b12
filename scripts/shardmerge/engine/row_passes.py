"""Passes that find numbers of vectors, or of elements within them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import stated_dtype
from shardmerge.algebra.lowering import reduction_for
from shardmerge.base.numerics import Numerics
from shardmerge.engine.call_tiles import CallTiles, to_text
from shardmerge.engine.chance_turns import AT_ONCE, ReadValues
from shardmerge.engine.philox import native_stream
from shardmerge.engine.row_chances import DrawnRowMasks, native_choice
from shardmerge.engine.row_steps import RowCode, lowered_steps, row_groups
from shardmerge.engine.stripes import Stripes
from shardmerge.engine.tile_buffers import AHEAD, ReadFiles, TileBuffers
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.engine.torch_tiles import TorchTiles
from shardmerge.engine.torch_whole import TOGETHER, TorchWhole
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.masks import ElementSpan
from shardmerge.methods.kernels.plain import result_of
from shardmerge.methods.kernels.ranks import RowMasks
from shardmerge.methods.passes import (
    Elements,
    ElementValue,
    Masks,
    Maxima,
    RowChances,
    RowSteps,
    Sums,
    TorchRows,
    TorchSums,
    end_of,
    in_turn,
    vectors,
)
from shardmerge.methods.program import LANES, Reducing, Reduction
from shardmerge.methods.symbolic import Given

#: Of each thread, how it read keys last.
_LAST = threading.local()

#: What is asked for of rows.
OfRows = Sums | Maxima | RowSteps | TorchRows | TorchSums
#: Returns a number of each vector from a first one on, for each value: (first, count).
FindRows = Callable[[int, int], np.ndarray]


class RowPasses(CallTiles):
    """Finds numbers of rows, sums in torch's order, and what chance chooses within rows."""

    def __init__(self, files: ReadFiles, numerics: Numerics) -> None:
        super().__init__(files, numerics)
        self._codes: dict[tuple[ex.Call, RowSteps], RowCode | None] = {}
        #: Calls whose masks and sums are found of the same elements, each with a mark of its own.
        self._sharing: dict[ex.Call, object] = {}

    def _rows(self, call: ex.Call, wanted: OfRows) -> np.ndarray:
        """Return what is asked for of vectors whose elements follow each other."""
        found = self._row_finder(call, wanted)(0, vectors(call.inputs[0].shape, wanted.axis)[0])
        # one number for each is worth to be kept
        self.answers[call].append(to_text(found) if len(found) == 1 else None)
        return found

    def _row_finder(self, call: ex.Call, wanted: OfRows) -> FindRows:
        """Return what finds numbers of some rows: (first row, number) -> [values, rows]."""
        if isinstance(wanted, RowSteps):
            code = self._row_code(call, wanted)
            return code.find if code else partial(self._in_turn, call, wanted)
        if isinstance(wanted, TorchSums):
            return self._torch_tiles(call, wanted).some
        if isinstance(wanted, TorchRows):
            return self._torch_rows(call, wanted)
        length, greatest = vectors(call.inputs[0].shape, wanted.axis)[1], isinstance(wanted, Maxima)
        kind: Reducing = "maxima" if greatest and length % LANES == 0 else "sums"
        tiles = self._tiles(call, wanted.function, kind)
        reduce = tiles.maxima if greatest else tiles.sums
        return lambda begin, count: reduce(count, length, begin)

    def _in_turn(self, call: ex.Call, wanted: RowSteps, begin: int, count: int) -> np.ndarray:
        """Return what steps find of some rows, each in a pass of its own."""
        number = vectors(call.inputs[0].shape, wanted.axis)[0]
        some = slice(begin, begin + count)

        def found(asked: Sums | Maxima) -> np.ndarray:
            own = self._row_finder(call, asked)(begin, count)
            rows = np.zeros((len(own), number))
            rows[:, some] = own
            return rows

        return result_of(wanted, end_of(in_turn(wanted), found)[:, some])

    def _row_code(self, call: ex.Call, wanted: RowSteps) -> RowCode | None:
        """Return the code that finds numbers of rows in steps, None if that takes passes."""
        if (call, wanted) not in self._codes:
            self._codes[call, wanted] = self._make_row_code(call, wanted)
        return self._codes[call, wanted]

    def _make_row_code(self, call: ex.Call, wanted: RowSteps) -> RowCode | None:
        rows, length = vectors(call.inputs[0].shape, wanted.axis)
        if length % LANES or length > BLOCK:
            return None
        leaves = self._leaves(call)

        def lowered(kind: Reducing, function: Callable) -> tuple[Reduction, Given]:
            return reduction_for(call, function, kind, leaves, self._numerics, self.map)

        steps = lowered_steps(wanted, rows, lowered)
        if not all(step.is_whole for step in steps):
            return None
        return RowCode(self._reader(leaves, AHEAD), steps, length)

    def _torch_rows(
        self, call: ex.Call, wanted: TorchRows, reader: TileBuffers | None = None
    ) -> FindRows:
        """Return what finds numbers of rows by torch, which gets a few rows at a time."""
        import torch

        from shardmerge.engine.buffers import torch_dtype

        number, length = len(call.inputs), vectors(call.inputs[0].shape, wanted.axis)[1]
        dtype = torch_dtype(stated_dtype(call.inputs[0]))
        tiles = self._tiles(call, lambda x: [x[i] for i in range(number)], "bits", reader)

        def some(first: int, rows: int) -> np.ndarray:
            bits = tiles.bits(first * length, rows * length)
            values = (torch.from_numpy(one.view(np.float32)).to(dtype) for one in bits)
            made = wanted.function([one.view(rows, length) for one in values])
            return made.double().reshape(-1).numpy()

        def find(begin: int, count: int) -> np.ndarray:
            parts = [some(*group) for group in row_groups(begin, count, length)]
            return np.concatenate(parts)[None]

        return find

    def _torch_sums(self, call: ex.Call, *wanted: TorchSums) -> list[np.ndarray]:
        """Return sums of a whole tensor, which is read once for all."""
        found = self._torch_whole(call, wanted).run()
        for answer, seen in found:
            self.answers[call].append(f"{to_text(answer)} {to_text(seen)}")
        return [answer for answer, _ in found]

    def _torch_whole(self, call: ex.Call, wanted: Sequence[TorchSums]) -> TorchWhole:
        """Return what makes sums of a whole tensor, of requests with the same chunks."""
        codes: list[list[str]] = []
        sizes: list[int] = []

        def values(x: Elements) -> list[ElementValue]:
            made = [one.function(x) for one in wanted]
            sizes[:] = map(len, made)
            return [value for own in made for value in own]

        def ways(found: Sequence[str]) -> tuple[Reducing, ...]:
            rest = iter(found)
            codes[:] = [[*islice(rest, size)] for size in sizes]
            pairs = zip(wanted, codes, strict=True)
            return tuple(_torch_way(one, code) for one, own in pairs for code in own)

        def wide(x: Elements) -> list[ElementValue]:
            return [value.double() for value in values(x)]

        reader = self._reader(self._leaves(call), TOGETHER)
        tiles = self._tiles(call, values, ways, reader)
        rest = partial(self._tiles, call, wide, "sums", reader)
        return TorchWhole(wanted, ex.elements(call.inputs[0]), codes, tiles, rest)

    def _torch_columns(self, call: ex.Call, wanted: TorchSums) -> np.ndarray:
        answer = self._torch_tiles(call, wanted).columns()
        self.answers[call].append(to_text(answer, "<f4"))
        return answer

    def _torch_tiles(
        self, call: ex.Call, wanted: TorchSums, stripes: Stripes | None = None
    ) -> TorchTiles:
        codes: list[str] = []

        def kind(found: Sequence[str]) -> Reducing:
            codes[:] = found
            (code,) = set(codes)
            return _torch_way(wanted, code)

        def wide(x: Elements) -> list[ElementValue]:
            return [value.double() for value in wanted.function(x)]

        tiles = self._tiles(call, wanted.function, kind, None, stripes)
        rest = partial(self._tiles, call, wide, "sums", None, stripes)
        shape = stripes.shape if stripes else call.inputs[0].shape
        return TorchTiles(wanted, shape, codes, tiles, rest)

    def _row_masks(self, call: ex.Call, wanted: RowChances) -> list[Masks]:
        ranks = None
        if wanted.by_torch:
            from shardmerge.engine.buffers import torch_dtype
            from shardmerge.engine.quick_ranks import ranks_like_torch

            ranks = partial(ranks_like_torch, dtype=torch_dtype(stated_dtype(call.inputs[0])))

        def keys(x: Elements) -> list[ElementValue]:
            return [value.key() for value in wanted.function(x)]

        def tiles() -> ReducedTiles:
            # a thread asks for many groups of a tensor's rows in turn, and its buffers are its own
            if getattr(_LAST, "keys", None) is not keys:
                _LAST.keys = keys
                _LAST.tiles = self._tiles(call, keys, "bits", self._shared(call))
            return _LAST.tiles

        def values(spans: Sequence[ElementSpan]) -> np.ndarray:
            return tiles().bits_of(spans).view(np.float32)

        wanted = replace(wanted, numbers=tuple(map(native_stream, wanted.numbers)))
        choose = [native_choice(bounds, ranks) for bounds in wanted.bounds]
        shape, little = call.inputs[0].shape, self._little
        if wanted.by_torch:
            return RowMasks(values, wanted, shape, choose, little=little).masks()
        self._sharing[call] = object()

        def read(spans: Sequence[ElementSpan]) -> ReadValues | None:
            return tiles().read(spans, AT_ONCE)

        return DrawnRowMasks(values, read, wanted, shape, choose, little=little).masks()

    def _shared(self, call: ex.Call) -> TileBuffers | None:
        """Return what reads a call's leaves for its masks and for sums of what those choose.

        None where masks need no values. A thread has its own.
        """
        if call not in self._sharing:
            return None
        if getattr(_LAST, "shared", None) is not self._sharing[call]:
            _LAST.shared = self._sharing[call]
            # an earlier tensor is seldom read again
            before = getattr(_LAST, "reader", None)
            behind = 0 if self._little else BLOCK
            _LAST.reader = self._reader(self._leaves(call), AT_ONCE, behind, before)
        return _LAST.reader


def _torch_way(wanted: TorchSums, code: str) -> Reducing:
    """Return how torch adds up values of a type for a request."""
    if wanted.kind == "norm":
        return "numbers" if code == "F16" else "lanes"
    return "rows" if code == "F32" else "pairs"
