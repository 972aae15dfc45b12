"""Passes that find which elements, or which values, have some ranks of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import block_leaves, stated_dtype
from shardmerge.algebra.samples import remembered_runs
from shardmerge.engine.call_tiles import to_text
from shardmerge.engine.caught import CaughtKeys
from shardmerge.engine.choice_bounds import Boundaries, KeysOf
from shardmerge.engine.quick_choice import mask_like_torch, open_bits
from shardmerge.engine.row_passes import RowPasses
from shardmerge.engine.row_steps import row_groups
from shardmerge.engine.tiles import BracketCount
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket, CountKeys, Sample, find_bands, find_keys
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.kernels.places import PickedValues
from shardmerge.methods.passes import (
    Bands,
    Elements,
    ElementValue,
    KeyBand,
    Masks,
    OrderStatistics,
    Ranks,
    RowStatistics,
    TorchChoice,
    TorchRows,
    end_of,
    rows_first,
    vectors,
)
from shardmerge.methods.program import LANES

#: Runs of elements that tell of thresholds before a tensor is gone through; their elements, at
#: most, and at most one of so many; elements of a tensor from which on that pays.
_RUNS, _RUN, _EVERY, _SAMPLED = 64, 4096, 16, 1 << 19
#: Elements of a run at most where numbers of their rows are found first.
_RUN_OF_ROWS = 1024


class RankPasses(RowPasses):
    """Finds thresholds, the elements that lie between them, and values of some ranks."""

    def _bands(self, call: ex.Call, wanted: Bands, count: int) -> list[KeyBand]:
        seen: dict[Bracket, BracketCount] = {}

        def locate(k: int, key: int, number: int) -> int:
            every = 0, count
            equal = KeyBand(key, key, every, every)

            def mask(x: Elements) -> ElementValue:
                return x.inside(wanted.function(x)[k], equal)

            counted = self._tiles(call, lambda x: [mask(x)], "counts")
            shown = self._tiles(call, lambda x: [x.number(mask(x)).double()], "sums")
            begin = 0, 0
            for one, own in seen.items():
                if one.value == k and one.shift == 0 and 0 <= key - one.low < one.parts:
                    begin = own.tile_of(key - one.low, number)
            return counted.locate(shown, count, number, begin)

        counted, sample = self._keys(call, wanted.function, count, seen)
        return find_bands(wanted.ranks, count, 32, counted, locate, sample)

    def _order_statistics(self, call: ex.Call, wanted: OrderStatistics, count: int) -> list[int]:
        """Return the keys of the values that have some ranks."""
        counted, sample = self._keys(call, lambda x: [wanted.function(x)], count, {})
        return find_keys(wanted.ranks, count, 32, counted, sample)

    def _row_statistics(
        self, call: ex.Call, wanted: RowStatistics
    ) -> tuple[np.ndarray, list[float]]:
        """Return numbers of rows and the values of some ranks, mostly found in one pass."""
        rows, length = vectors(call.inputs[0].shape, "last")
        count = rows * length
        if isinstance(wanted.rows, TorchRows):
            if rows == 1:
                return end_of(rows_first(wanted), partial(self._answer, call))
            return self._torch_statistics(call, wanted)
        code = self._row_code(call, wanted.rows)
        if not code or count < _SAMPLED:
            return end_of(rows_first(wanted), partial(self._answer, call))
        raw, numbers = np.empty(rows), np.zeros(rows, "<f4")
        value = partial(wanted.values, numbers)

        def find(first: int, some: int) -> None:
            found = code.find(first, some)
            raw[first : first + some] = found[0]
            numbers[first : first + some] = wanted.number(found)

        def sample(k: int) -> np.ndarray:
            for first, some in _runs(count, length):
                find(first // length, -(-(first % length + some) // length))
            return told(k, length)

        def caught(brackets: Sequence[Bracket]) -> tuple[list[int], np.ndarray] | None:
            tiles = self._tiles(call, lambda x: [value(x).key()] * len(brackets), "caught", reader)
            keys = CaughtKeys(brackets)
            for first, some in row_groups(0, rows, length):
                find(first, some)
                keys.add(tiles, first * length, some * length)
            return keys.found()

        reader = code.reader
        counted, told = self._keys(call, lambda x: [value(x)], count, {})
        keys = find_keys(wanted.ranks, count, 32, counted, sample, caught)
        self.answers[call] += [to_text(raw), keys]
        return numbers, np.array(keys, np.int32).view(np.float32).tolist()

    def _torch_statistics(
        self, call: ex.Call, wanted: RowStatistics
    ) -> tuple[np.ndarray, list[float]]:
        """Return numbers of rows that torch makes, and the values of ranks, found in one pass."""
        rows, length = vectors(call.inputs[0].shape, "last")
        raw, numbers = np.empty(rows), np.zeros(rows, "<f4")
        reader = self._reader(block_leaves(call, self._files.stored, self._numerics))
        find = self._torch_rows(call, wanted.rows, reader)
        value = partial(wanted.values, numbers)
        tiles = self._tiles(call, lambda x: [value(x)], "bits", reader)
        groups = row_groups(0, rows, length)
        picked = PickedValues(wanted.places(), groups[0][1] * length, rows * length)
        for first, some in groups:
            found = find(first, some)
            raw[first : first + some] = found[0]
            numbers[first : first + some] = wanted.number(found)
            (bits,) = tiles.bits(first * length, some * length)
            picked.add(bits.view(np.float32), first * length)
        self.answers[call].append(to_text(raw))
        return numbers, self._ranked(call, picked, wanted.ranks)

    def _at_places(self, call: ex.Call, wanted: OrderStatistics) -> list[float]:
        """Return the values that have some ranks among those at some places."""
        return self._ranked(call, self._picked(call, wanted), wanted.ranks)

    def _picked(
        self, call: ex.Call, wanted: OrderStatistics, chosen: Sequence[int] | None = None
    ) -> PickedValues:
        """Return the values at some places, of all tiles or of some."""
        rows, length = vectors(call.inputs[0].shape, "last")
        step = row_groups(0, rows, length)[0][1] * length
        tiles = self._tiles(call, lambda x: [wanted.function(x)], "bits")
        picked = PickedValues(wanted.places(), step, rows * length, chosen)
        for first, count in picked.spans():
            (bits,) = tiles.bits(first, count)
            picked.add(bits.view(np.float32), first)
        return picked

    def _ranked(self, call: ex.Call, picked: PickedValues, ranks: Sequence[int]) -> list[float]:
        """Return the values that have some ranks; note them, and where others lie to them."""
        values = picked.ranked(ranks)
        self.answers[call].append(f"{to_text(values)} {to_text(picked.counts(values))}")
        return values.tolist()

    def _torch_choice(self, call: ex.Call, wanted: TorchChoice, count: int) -> list[Masks]:
        """Return the masks of what torch puts at some ranks, one value after the other."""
        rows, masks = [], []
        bands = self._choice_bands(call, wanted, count)
        for k, (ranks, band) in enumerate(zip(wanted.clipped(count), bands, strict=True)):
            keys = self._choice_keys(call, wanted, k)
            mask = self._choose(keys, call, wanted, ranks, band)
            limits = Boundaries.of(ranks, count, band.low, band.high)
            runs = remembered_runs(call.tensor, count, BLOCK)
            rows.append([band.low, band.high, open_bits(mask, keys, limits, runs)])
            masks.append(mask)
        self.answers[call].append(rows)
        return masks

    def _choice_bands(self, call: ex.Call, wanted: TorchChoice, count: int) -> list[KeyBand]:
        """Return the keys of what has some ranks; what was counted for that is not kept."""
        counted, sample = self._keys(call, wanted.function, count, {})
        # where equal elements lie is not asked for
        return find_bands(wanted.ranks, count, 32, counted, lambda *_: 0, sample)

    def _choice_keys(self, call: ex.Call, wanted: TorchChoice, k: int) -> KeysOf:
        """Return what tells the keys of one of the values that are chosen by."""
        tiles = self._tiles(call, lambda x: [wanted.function(x)[k].key()], "bits")
        return lambda first, size: tiles.bits(first, size)[0]

    def _choose(
        self, keys: KeysOf, call: ex.Call, wanted: TorchChoice, ranks: Ranks, band: KeyBand
    ) -> BitMask:
        """Return which elements torch puts at some ranks, whose keys lie in a band."""
        count, code = ex.elements(call.inputs[0]), stated_dtype(call.inputs[0])
        return mask_like_torch(keys, count, ranks, band, wanted.order, code)

    def _keys(
        self,
        call: ex.Call,
        function: Callable[[Elements], Sequence[ElementValue]],
        count: int,
        seen: dict[Bracket, BracketCount],
    ) -> tuple[CountKeys, Sample | None]:
        """Return what counts the keys of a call's values, and what tells where they may be.

        Args:
            call: The call.
            function: Returns the values.
            count: Elements.
            seen: Filled with what was counted tile by tile.
        """

        def counted(brackets: Sequence[Bracket]) -> list[tuple[int, np.ndarray]]:
            def keys(x: Elements) -> list[ElementValue]:
                values = [value.key() for value in function(x)]
                return [values[one.value] for one in brackets]

            found = self._tiles(call, keys, "keys").brackets(count, brackets)
            seen.update(zip(brackets, found, strict=True))
            return [(one.below, one.parts) for one in found]

        sampled: list[np.ndarray] = []

        def sample(k: int, length: int = 0) -> np.ndarray:
            if not sampled:
                tiles = self._tiles(call, lambda x: [one.key() for one in function(x)], "bits")
                runs = [tiles.bits(*run) for run in _runs(count, length)]
                sampled[:] = np.stack(runs, axis=1).view(np.int32)
            return sampled[k]

        return counted, sample if count >= _SAMPLED else None


def _runs(count: int, length: int = 0) -> list[tuple[int, int]]:
    """Return the runs of elements that are a sample: (first, number), all of one length.

    Args:
        count: Elements of the tensor.
        length: Elements of a row, of which few are looked at; 0 where rows do not matter.
    """
    step, run = (count // some // LANES * LANES for some in (_RUNS, _RUNS * _EVERY))
    most = min(_RUN_OF_ROWS, length) if length else _RUN
    return [(first * step, min(run, most)) for first in range(_RUNS)]
