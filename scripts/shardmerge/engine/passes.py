"""Passes over what lies in files, before a tensor's elements are made: by native code."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.engine.call_tiles import to_text
from shardmerge.engine.chances import chosen_by_chance
from shardmerge.engine.halves import halved_sum
from shardmerge.engine.mersenne import native_fill
from shardmerge.engine.rank_passes import RankPasses
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.mersenne import Mersenne
from shardmerge.methods.passes import (
    Bands,
    Chances,
    Counts,
    Maxima,
    OrderStatistics,
    RowChances,
    RowStatistics,
    RowSteps,
    Sums,
    Together,
    TorchChoice,
    TorchDraws,
    TorchRows,
    TorchSums,
    Wanted,
    along_first,
    vectors,
)


class NativePasses(RankPasses):
    """Answers what the calls of a tensor's expression ask for, and keeps it for the record."""

    def _answer(self, call: ex.Call, wanted: Wanted) -> Any:
        shape, count = call.inputs[0].shape, ex.elements(call.inputs[0])
        note = self.answers[call].append
        match wanted:
            case Sums(function, axis) if vectors(shape, axis)[0] == 1:
                tiles = self._tiles(call, function, "sums", self._shared(call))
                table = self._table(call, tiles, count)
                note(to_text(table))
                return halved_sum(table)[:, None]
            case Counts(function):
                table = self._table(call, self._tiles(call, function, "counts"), count)
                note(to_text(table))
                return [int(total) for total in table.sum(axis=1)]
            case Bands():
                return self._bands(call, wanted, count)
            case OrderStatistics(places=places) if places:
                return self._at_places(call, wanted)
            case TorchRows():
                return self._rows(call, wanted)
            case OrderStatistics():
                keys = self._order_statistics(call, wanted, count)
                return np.array(keys, np.int32).view(np.float32).tolist()
            case TorchSums(axis=axis) if vectors(shape, axis)[0] == 1:
                return self._torch_sums(call, wanted)[0]
            case Together():
                return self._several(call, wanted)
            case RowStatistics():
                return self._row_statistics(call, wanted)
            case TorchChoice():
                return self._torch_choice(call, wanted, count)
            case RowSteps():
                return self._rows(call, wanted)
            case Sums(axis=axis) | Maxima(axis=axis) | TorchSums(axis=axis) if not along_first(
                shape, axis
            ):
                return self._rows(call, wanted)
            case TorchSums():
                return self._torch_columns(call, wanted)
            case Chances():
                return chosen_by_chance(wanted, count, little=self._little)
        note(None)
        match wanted:
            case Sums(function, axis):
                tiles = self._tiles(call, function, "sums")
                return tiles.sums_along_first(*vectors(shape, axis))
            case RowChances():
                return self._row_masks(call, wanted)
            case TorchDraws(seed):
                return Mersenne(seed, native_fill)
        raise TypeError(f"not known to native code: {wanted!r}")

    def _several(self, call: ex.Call, wanted: Together) -> list[np.ndarray]:
        shape = call.inputs[0].shape
        if vectors(shape, wanted.wanted[0].axis)[0] == 1:
            return self._torch_sums(call, *wanted.wanted)
        return [self._answer(call, one) for one in wanted.wanted]

    def _table(self, call: ex.Call, tiles: ReducedTiles, count: int) -> np.ndarray:
        """Return what each tile adds to a call's sums or counts, float64 [sums, tiles]."""
        return tiles.table(count, range(-(-count // BLOCK)))
