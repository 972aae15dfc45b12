"""Passes that find which elements, or which values, have some ranks of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import stated_dtype
from shardmerge.algebra.samples import remembered_runs
from shardmerge.engine.call_tiles import to_text
from shardmerge.engine.caught import MOST_CAUGHT, CaughtKeys
from shardmerge.engine.choice_bounds import Boundaries, KeysOf
from shardmerge.engine.counting import ROOM
from shardmerge.engine.quick_choice import mask_like_torch, open_bits
from shardmerge.engine.row_passes import RowPasses
from shardmerge.engine.row_steps import RowCode, row_groups
from shardmerge.engine.tile_buffers import ChosenRows, TileBuffers
from shardmerge.engine.tiles import BracketCount, ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket, KeyPasses, find_bands, find_keys
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
from shardmerge.methods.program import LANES, Reducing

#: Runs of elements that tell of thresholds before a tensor is gone through; their elements, at
#: most, and at most one of so many; elements of a tensor from which on that pays.
_RUNS, _RUN, _EVERY, _SAMPLED = 128, 1024, 16, 1 << 19
#: Elements of tensors of which a bit for each is held, at most: 64 MiB.
_MARKED = 1 << 29
#: Keys are kept if at most one of so many likely lies in brackets; more are counted.
_FEW = 4
#: Runs where numbers of their rows are found first, which takes longer; their elements, at most,
#: and the fewest rows.
_RUNS_OF_ROWS, _RUN_OF_ROW, _FEWEST_ROWS = 64, 1 << 12, 4
#: Returns values of elements.
_Values = Callable[[Elements], Sequence[ElementValue]]


class RankPasses(RowPasses):
    """Finds thresholds, the elements that lie between them, and values of some ranks."""

    def _bands(self, call: ex.Call, wanted: Bands, count: int) -> list[KeyBand]:
        seen = _Seen()

        def locate(k: int, key: int, number: int) -> int:
            tiles = self._key_bits(call, wanted.function)
            tile, before = seen.tile_of(k, key, number)
            for first in range(tile * BLOCK, count, BLOCK):
                keys = tiles.bits(first, min(BLOCK, count - first))[k]
                places = np.flatnonzero(keys == key)
                if number - before < len(places):
                    return first + int(places[number - before])
                before += len(places)
            raise ValueError("there are not so many")

        seen.marking = count if wanted.marked and count <= _MARKED else 0
        passes = self._key_passes(call, wanted.function, count, seen)
        bands, nonzero = find_bands(wanted.ranks, passes, locate)
        rows = [[one.low, one.high, *one.at_low, *one.at_high] for one in bands]
        for k, number in nonzero.items():
            rows[k].append(number)
        self.answers[call].append(rows)
        if not (seen.marking and seen.caught):
            return bands
        return [replace(one, marks=seen.caught.marks(k, one)) for k, one in enumerate(bands)]

    def _order_statistics(self, call: ex.Call, wanted: OrderStatistics, count: int) -> list[int]:
        """Return the keys of the values that have some ranks."""
        passes = self._key_passes(call, lambda x: [wanted.function(x)], count)
        return find_keys(wanted.ranks, passes)

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

        def find(code: RowCode, first: int, some: int) -> None:
            found = code.find(first, some)
            raw[first : first + some] = found[0]
            numbers[first : first + some] = wanted.number(found)

        def sample(_: int) -> np.ndarray:
            """Return keys of rows whose numbers stand for others' until those are found."""
            chosen, pieces = _spread_rows(rows)
            few = code.of(ChosenRows(self._files, chosen, length))
            tiles, keys = self._key_bits(call, lambda x: [value(x)], few.reader), []
            most = min(length, pieces * _RUN_OF_ROW) // pieces * pieces
            for first, some in row_groups(0, len(chosen), length):
                find(few, first, some)
                (own,) = tiles.bits(first * length, some * length)
                keys.append(own.reshape(some, length)[:, :most])
            return np.concatenate(keys).reshape(len(chosen) * pieces, -1).view(np.int32)

        def caught(brackets: Sequence[Bracket], _: int) -> list[tuple[int, np.ndarray]] | None:
            def keys_of(x: Elements) -> list[ElementValue]:
                return [value(x).key()] * len(brackets)

            tiles = self._tiles(call, keys_of, "caught", code.reader)
            keys = CaughtKeys(brackets)
            tiles.in_order(count)
            for first, some in row_groups(0, rows, length, ROOM):
                find(code, first, some)
                keys.add(tiles, first * length, some * length)
            return keys.found()

        passes = self._key_passes(call, lambda x: [value(x)], count)
        keys = find_keys(wanted.ranks, replace(passes, sample=sample, caught=caught))
        self.answers[call] += [to_text(raw), keys]
        return numbers, np.array(keys, np.int32).view(np.float32).tolist()

    def _torch_statistics(
        self, call: ex.Call, wanted: RowStatistics
    ) -> tuple[np.ndarray, list[float]]:
        """Return numbers of rows that torch makes, and the values of ranks, found in one pass."""
        rows, length = vectors(call.inputs[0].shape, "last")
        raw, numbers = np.empty(rows), np.zeros(rows, "<f4")
        reader = self._reader(self._leaves(call))
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
        passes = self._key_passes(call, wanted.function, count)
        # where equal elements lie is not asked for
        return find_bands(wanted.ranks, passes, lambda *_: 0)[0]

    def _choice_keys(self, call: ex.Call, wanted: TorchChoice, k: int) -> KeysOf:
        """Return what tells the keys of one of the values that are chosen by."""
        tiles = self._key_bits(call, lambda x: [wanted.function(x)[k]])
        return lambda first, size: tiles.bits(first, size)[0]

    def _choose(
        self, keys: KeysOf, call: ex.Call, wanted: TorchChoice, ranks: Ranks, band: KeyBand
    ) -> BitMask:
        """Return which elements torch puts at some ranks, whose keys lie in a band."""
        count, code = ex.elements(call.inputs[0]), stated_dtype(call.inputs[0])
        return mask_like_torch(keys, count, ranks, band, wanted.order, code)

    def _key_bits(
        self, call: ex.Call, function: _Values, reader: TileBuffers | None = None
    ) -> ReducedTiles:
        return self._tiles(call, lambda x: [value.key() for value in function(x)], "bits", reader)

    def _key_passes(
        self,
        call: ex.Call,
        function: _Values,
        count: int,
        seen: _Seen | None = None,
    ) -> KeyPasses:
        """Return passes over the keys of a call's values.

        Args:
            call: The call.
            function: Returns the values.
            count: Elements.
            seen: Told what was seen tile by tile.
        """

        def tiles(brackets: Sequence[Bracket], kind: Reducing) -> ReducedTiles:
            def keys(x: Elements) -> list[ElementValue]:
                values = [value.key() for value in function(x)]
                return [values[one.value] for one in brackets]

            return self._tiles(call, keys, kind)

        def counted(brackets: Sequence[Bracket]) -> list[tuple[int, np.ndarray]]:
            found = tiles(brackets, "keys").brackets(count, brackets)
            if seen:
                seen.counted.update(zip(brackets, found, strict=True))
            return [(one.below, one.parts) for one in found]

        def caught(
            brackets: Sequence[Bracket], expected: int
        ) -> list[tuple[int, np.ndarray]] | None:
            if expected > min(MOST_CAUGHT, count // _FEW):
                return None
            keys = CaughtKeys(brackets, seen.marking if seen else 0)
            looked = tiles(brackets, "caught")
            looked.in_order(count)
            for first in range(0, count, ROOM):
                keys.add(looked, first, min(ROOM, count - first))
            found = keys.found()
            if seen and found:
                seen.caught = keys
            return found

        sampled: list[np.ndarray] = []

        def sample(k: int) -> np.ndarray:
            if not sampled:
                bits = self._key_bits(call, function)
                runs = [bits.bits(*run) for run in _runs(count)]
                sampled[:] = np.stack(runs, axis=1).view(np.int32)
            return sampled[k]

        if count < _SAMPLED:
            return KeyPasses(count, 32, counted)
        return KeyPasses(count, 32, counted, sample, caught)


@dataclass
class _Seen:
    """What was seen of keys tile by tile.

    Args:
        counted: How many lie in brackets.
        caught: Those that lie in brackets.
        marking: Elements, where marks of bands are wanted.
    """

    counted: dict[Bracket, BracketCount] = field(default_factory=dict)
    caught: CaughtKeys | None = None
    marking: int = 0

    def tile_of(self, k: int, key: int, number: int) -> tuple[int, int]:
        """Return a tile near before the so manieth of a value's equal keys, and how many before."""
        for one, own in self.counted.items():
            if one.value == k and one.shift == 0 and one.low <= key < one.end:
                return own.tile_of(key - one.low, number)
        if not self.caught:
            return 0, 0
        part, before = self.caught.part_of(k, key, number)
        return part * (ROOM // BLOCK), before


def _runs(count: int) -> list[tuple[int, int]]:
    """Return the runs of elements that are a sample: (first, number), all of one length."""
    step, run = (count // some // LANES * LANES for some in (_RUNS, _RUNS * _EVERY))
    return [(first * step, min(run, _RUN)) for first in range(_RUNS)]


def _spread_rows(rows: int) -> tuple[list[int], int]:
    """Return the rows whose elements are a sample, and into how many runs each is cut."""
    number = min(max(rows // _EVERY, _FEWEST_ROWS), _RUNS_OF_ROWS, rows)
    return [k * rows // number for k in range(number)], _RUNS_OF_ROWS // number
