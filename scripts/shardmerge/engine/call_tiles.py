"""What passes over the inputs of a call are made of: native code that goes through tiles."""

from __future__ import annotations

import abc
import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import begin_passes
from shardmerge.algebra.leaves import Leaves, block_leaves, stated_dtype
from shardmerge.algebra.lowering import reduction_for
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.engine.held import tile_buffers
from shardmerge.engine.locations import apart
from shardmerge.engine.stripes import Stripes
from shardmerge.engine.tile_buffers import ReadFiles, TileBuffers
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.passes import (
    Elements,
    ElementValue,
    Map,
    Wanted,
    end_of,
)
from shardmerge.methods.program import Reducing, ReducingOf
from shardmerge.methods.registry import passes_of


class CallTiles(abc.ABC):
    """Finds what the calls of a tensor's expression do to its elements.

    ``passes.NativePasses`` answers what a call asks for.

    Args:
        files: That a job reads.
        numerics: In which it computes.
    """

    #: Whether few tiles of all are looked at.
    _little = False

    def __init__(self, files: ReadFiles, numerics: Numerics) -> None:
        self._files, self._numerics = files, numerics
        self._made: dict[ex.Call, Map] = {}
        self._found: dict[ex.Call, Leaves] = {}
        #: Of each call what its passes found, as JSON-able data; None for what is not kept.
        self.answers: dict[ex.Call, list[Any]] = {}

    def map(self, call: ex.Call) -> Map:
        """Return what a call that is computed in passes does to elements."""
        if call not in self._made:
            begin = passes_of(call.method, self._numerics)
            self.answers[call] = []
            code = "" if self._numerics.rounds_once else stated_dtype(call.inputs[0])
            passes = begin_passes(call, begin, code)
            self._made[call] = end_of(passes, lambda wanted: self._answer(call, wanted))
        return self._made[call]

    def inputs(self, call: ex.Call, runs: Iterable[tuple[int, int]]) -> list[np.ndarray]:
        """Return elements of a call's inputs as native code makes them, float32 [elements] each.

        Args:
            call: The call.
            runs: Which: (first, number).
        """
        each = range(len(call.inputs))
        tiles = self._tiles(call, lambda x: [x[i].double() for i in each], "sums")
        parts = [tiles.values(*run) for run in runs]
        return list(np.concatenate(parts, axis=1).astype(np.float32))

    @abc.abstractmethod
    def _answer(self, call: ex.Call, wanted: Wanted) -> Any:
        """Return what a call's passes ask for."""

    def _tiles(
        self,
        call: ex.Call,
        function: Callable[[Elements], Sequence[ElementValue]],
        kind: Reducing | ReducingOf,
        reader: TileBuffers | Stripes | None = None,
        stripes: Stripes | None = None,
    ) -> ReducedTiles:
        leaves = self._leaves(call)
        code, given = reduction_for(call, function, kind, leaves, self._numerics, self.map)
        places = self._places(leaves)
        if stripes:
            reader = stripes.read(places, self._files, [DTYPES[one].size for one in code.leaves])
            given = replace(given, loads=[partial(stripes.numbers, one) for one in given.loads])
        return ReducedTiles(places, self._files, code, given, reader, little=self._little)

    def _leaves(self, call: ex.Call) -> Leaves:
        if call not in self._found:
            self._found[call] = block_leaves(call, self._files.stored, self._numerics)
        return self._found[call]

    def _places(self, leaves: Leaves) -> list[Any]:
        return [apart(self._files.locate(leaf)) for leaf in leaves.files]

    def _reader(
        self,
        leaves: Leaves,
        most: int = BLOCK,
        behind: int = 0,
        room: TileBuffers | None = None,
    ) -> TileBuffers:
        sizes = [DTYPES[leaf.dtype].size for leaf in leaves.files]
        places = self._places(leaves)
        return tile_buffers(places, self._files, sizes, most, behind=behind, room=room)


def to_text(table: np.ndarray, kind: str = "<f8") -> str:
    """Return float64 numbers as text, for a record, or those of a smaller kind that has them."""
    return base64.b64encode(table.astype(kind).tobytes()).decode()
