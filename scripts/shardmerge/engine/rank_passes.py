"""Passes that find which elements, or which values, have some ranks of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import stated_dtype
from shardmerge.algebra.samples import RUN, remembered_runs
from shardmerge.engine.call_tiles import to_text
from shardmerge.engine.caught import MOST_CAUGHT, CaughtKeys
from shardmerge.engine.choice_bounds import Boundaries, KeysOf
from shardmerge.engine.quick_choice import mask_like_torch, open_bits
from shardmerge.engine.row_passes import RowPasses
from shardmerge.engine.row_steps import RowCode, row_groups
from shardmerge.engine.telling import Telling, sides_of, telling_bands, telling_sides
from shardmerge.engine.tile_buffers import AHEAD, ChosenRows, TileBuffers
from shardmerge.engine.tiles import BracketCount, ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import (
    Bracket,
    KeyPasses,
    among_all,
    find_bands,
    find_keys,
    in_parts,
)
from shardmerge.methods.kernels.masks import BitMask, ElementSpan, in_one_array
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
    ranks_of,
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
#: Tiles of whose rows numbers are found together.
_TOGETHER = 4
#: Tiles of which is kept where some keys lie.
_KEPT_PLACES = 8
#: Returns values of elements.
_Values = Callable[[Elements], Sequence[ElementValue]]


class RankPasses(RowPasses):
    """Finds thresholds, the elements that lie between them, and values of some ranks."""

    def _bands(self, call: ex.Call, wanted: Bands, count: int) -> list[KeyBand]:
        seen = _Seen()

        @cache
        def tiles() -> ReducedTiles:
            return self._key_bits(call, wanted.function)

        @lru_cache(_KEPT_PLACES)
        def places(k: int, key: int, tile: int) -> np.ndarray:
            first = tile * BLOCK
            keys = tiles().bits(first, min(BLOCK, count - first))[k]
            return first + np.flatnonzero(keys == key)

        def locate(k: int, key: int, number: int) -> int:
            near, before = seen.tile_of(k, key, number)
            tiles = range(near, -(-count // BLOCK))
            return in_parts((places(k, key, tile) for tile in tiles), number - before)

        seen.marking = count if wanted.marked and count <= _MARKED else 0
        passes = self._key_passes(call, wanted.function, count, seen)
        bands, nonzero = find_bands(wanted.ranks, passes, locate)
        rows: list[Any] = [[one.low, one.high, *one.at_low, *one.at_high] for one in bands]
        for k, number in nonzero.items():
            rows[k].append(number)
        ranks = [ranks_of(one, count, nonzero.get(k)) for k, one in enumerate(wanted.ranks)]
        self.answers[call].append(rows + seen.told(telling_bands(bands, ranks, nonzero), places))
        if not (seen.marking and seen.caught):
            return bands
        return [replace(one, marks=seen.caught.marks(k, one)) for k, one in enumerate(bands)]

    def _order_statistics(self, call: ex.Call, wanted: OrderStatistics, count: int) -> list[int]:
        """Return the keys of the values that have some ranks; note them."""
        seen = _Seen(step=step_of(call))
        passes = self._key_passes(call, lambda x: [wanted.function(x)], count, seen)
        keys = find_keys(wanted.ranks, passes)
        self.answers[call].append(keys + seen.told_of(wanted.ranks, keys))
        return keys

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

            groups = row_groups(0, rows, length)
            keys = CaughtKeys(brackets, step=groups[0][1] * length)
            tiles = self._tiles(call, keys_of, keys.kind, code.reader)
            tiles.in_order(count)
            for k in range(0, len(groups), _TOGETHER):
                own = groups[k : k + _TOGETHER]
                first, some = own[0][0], sum(some for _, some in own)
                find(code, first, some)
                keys.add(tiles, first * length, some * length)
            found = keys.found()
            seen.caught = keys if found else None
            return found

        seen = _Seen()
        passes = self._key_passes(call, lambda x: [value(x)], count, seen)
        keys = find_keys(wanted.ranks, replace(passes, sample=sample, caught=caught))
        self.answers[call] += [to_text(raw), keys + seen.told_of(wanted.ranks, keys)]
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
        bands, told = self._choice_bands(call, wanted, count)
        for k, (ranks, band) in enumerate(zip(wanted.clipped(count), bands, strict=True)):
            keys = self._choice_keys(call, wanted, k)
            mask = self._choose(keys, call, wanted, ranks, band)
            limits = Boundaries.of(ranks, count, band.low, band.high)
            runs = remembered_runs(call.tensor, count, BLOCK)
            rows.append([band.low, band.high, open_bits(mask, keys, limits, runs)])
            masks.append(mask)
        self.answers[call].append(rows + told)
        return masks

    def _choice_bands(
        self, call: ex.Call, wanted: TorchChoice, count: int
    ) -> tuple[list[KeyBand], list[str]]:
        """Return the keys of what has some ranks, and what tells of them; no more is kept."""
        seen = _Seen()
        passes = self._key_passes(call, wanted.function, count, seen)
        # where equal elements lie is not asked for
        bands, _ = find_bands(wanted.ranks, passes, lambda *_: 0)
        pairs = zip(wanted.clipped(count), bands, strict=True)
        sides = [sides_of(ranks, band.low, band.high, count) for ranks, band in pairs]
        return bands, seen.told(telling_sides(sides))

    def _choice_keys(self, call: ex.Call, wanted: TorchChoice, k: int) -> KeysOf:
        """Return what tells the keys of one of the values that are chosen by."""
        return _KeysOf(self._key_bits(call, lambda x: [wanted.function(x)[k]]))

    def _choose(
        self, keys: KeysOf, call: ex.Call, wanted: TorchChoice, ranks: Ranks, band: KeyBand
    ) -> BitMask:
        """Return which elements torch puts at some ranks, whose keys lie in a band."""
        count, code = ex.elements(call.inputs[0]), stated_dtype(call.inputs[0])
        beside = self._files.beside
        return mask_like_torch(keys, count, ranks, band, wanted.order, code, beside)

    def _key_bits(
        self, call: ex.Call, function: _Values, reader: TileBuffers | None = None
    ) -> ReducedTiles:
        return self._tiles(call, lambda x: [value.key() for value in function(x)], "bits", reader)

    def _key_passes(
        self,
        call: ex.Call,
        function: _Values,
        count: int,
        seen: _Seen,
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
            seen.counted.update(zip(brackets, found, strict=True))
            return [(one.below, one.parts) for one in found]

        def caught(
            brackets: Sequence[Bracket], expected: int
        ) -> list[tuple[int, np.ndarray]] | None:
            if expected > min(MOST_CAUGHT, count // _FEW):
                return None
            keys = CaughtKeys(brackets, seen.marking, seen.step)
            looked, step = tiles(brackets, keys.kind), AHEAD // seen.step * seen.step
            looked.in_order(count)
            for first in range(0, count, step):
                keys.add(looked, first, min(step, count - first))
            found = keys.found()
            if found:
                seen.caught = keys
            return found

        sampled: list[np.ndarray] = []

        def sample(k: int) -> np.ndarray:
            if not sampled:
                bits = self._key_bits(call, function).bits_of(_runs(count))
                sampled[:] = bits.reshape(len(bits), _RUNS, -1).view(np.int32)
            return sampled[k]

        def all_caught(brackets: Sequence[Bracket], _: int) -> list[tuple[int, np.ndarray]]:
            keys = self._key_bits(call, function).bits(0, count).view(np.int32)
            return [among_all(keys[one.value], one) for one in brackets]

        if count <= BLOCK:
            return KeyPasses(count, 32, counted, caught=all_caught)
        if count < _SAMPLED:
            return KeyPasses(count, 32, counted)
        return KeyPasses(count, 32, counted, sample, caught)


@dataclass(frozen=True)
class _KeysOf:
    """Tells the keys of elements, of tiles that are reduced to their keys."""

    tiles: ReducedTiles

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return those of consecutive elements, uint32."""
        return self.tiles.bits(first, count)[0]

    def of_spans(self, spans: Sequence[ElementSpan]) -> np.ndarray:
        """Return those of spans, one after the other; short spans are read together."""
        short = [span for span in spans if span[1] <= RUN]
        ends = np.cumsum([count for _, count in short])
        parts = iter(np.split(self.tiles.bits_of(short)[0], ends[:-1]) if short else ())
        return in_one_array([next(parts) if span[1] <= RUN else self(*span) for span in spans])


@dataclass
class _Seen:
    """What was seen of keys tile by tile.

    Args:
        counted: How many lie in brackets.
        caught: Those that lie in brackets.
        marking: Elements, where marks of bands are wanted.
        step: Elements of a tile.
    """

    counted: dict[Bracket, BracketCount] = field(default_factory=dict)
    caught: CaughtKeys | None = None
    marking: int = 0
    step: int = BLOCK

    def told(
        self, bands: Sequence[Telling], places: Callable[..., np.ndarray] | None = None
    ) -> list[str]:
        """Return how many elements of each tile lie in some bands, as text; none if not known.

        Args:
            bands: Of some values.
            places: Returns the indices of elements of some key: (value's number, key, tile). It is
                needed where bands begin or end at some element of a key.
        """
        if not (self.caught and bands):
            return []
        rows = [self.caught.counts(k, band, places and partial(places, k)) for k, band in bands]
        known = [row for row in rows if row is not None]
        return [to_text(np.stack(known), "<i4")] if len(known) == len(rows) else []

    def told_of(self, ranks: Sequence[int], keys: Sequence[int]) -> list[str]:
        """Return what tells of the keys of one value that have some ranks, as ``told``."""
        return self.told(telling_sides([list(zip(ranks, keys, strict=True))]))

    def tile_of(self, k: int, key: int, number: int) -> tuple[int, int]:
        """Return a tile near before the so manieth of a value's equal keys, and how many before."""
        for one, own in self.counted.items():
            if one.value == k and one.shift == 0 and one.low <= key < one.end:
                return own.tile_of(key - one.low, number)
        return self.caught.tile_of(k, key, number) if self.caught else (0, 0)


def step_of(call: ex.Call) -> int:
    """Return how many elements are looked at together where numbers of rows may be needed."""
    length = vectors(call.inputs[0].shape, "last")[1]
    return BLOCK if length % LANES or length > BLOCK else BLOCK // length * length


def _runs(count: int) -> list[tuple[int, int]]:
    """Return the runs of elements that are a sample: (first, number), all of one length."""
    step, run = (count // some // LANES * LANES for some in (_RUNS, _RUNS * _EVERY))
    return [(first * step, min(run, _RUN)) for first in range(_RUNS)]


def _spread_rows(rows: int) -> tuple[list[int], int]:
    """Return the rows whose elements are a sample, and into how many runs each is cut."""
    number = min(max(rows // _EVERY, _FEWEST_ROWS), _RUNS_OF_ROWS, rows)
    return [k * rows // number for k in range(number)], _RUNS_OF_ROWS // number
