"""What a merge job found of whole tensors, verified instead of found once more.

Sums and counts are recorded tile by tile. A spread of tiles is added up again, and must have the
recorded bits; the rest is added up from the record. The bands of thresholds are exact if so many
elements lie before and in them as their ranks say: that is recorded and counted again likewise.
Where it is not recorded, one pass counts all.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.leaves import stated_dtype
from shardmerge.algebra.samples import Runs, is_looked_at_whole, remembered_runs, spread_tiles
from shardmerge.base.errors import UserError
from shardmerge.base.numerics import Numerics
from shardmerge.check.kernels import load_torch
from shardmerge.check.told_choices import ToldMask, ToldRow, told_rows
from shardmerge.check.torch_sums import add_up, are_seen, same
from shardmerge.engine.passes import NativePasses
from shardmerge.engine.quick_choice import open_bits
from shardmerge.engine.rank_passes import step_of
from shardmerge.engine.row_passes import OfRows
from shardmerge.engine.row_steps import row_groups
from shardmerge.engine.stripes import Stripes
from shardmerge.engine.tasks import call_needs_torch
from shardmerge.engine.telling import Side, Telling, telling_bands, telling_sides
from shardmerge.engine.tile_buffers import ChosenRows, ReadFiles
from shardmerge.engine.tiles import ReducedTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.passes import (
    GREATEST_KEY,
    NO_BAND,
    Bands,
    Elements,
    ElementValue,
    KeyBand,
    Map,
    Masks,
    OrderStatistics,
    Ranks,
    RowStatistics,
    RowSteps,
    TorchChoice,
    TorchSums,
    end_of,
    ranks_of,
    rows_first,
    vectors,
)


class RecordedPasses(NativePasses):
    """Finds what calls do to elements from what a record says, once that is verified.

    What the record lacks is found as the merge job finds it.

    Args:
        files: That are read.
        numerics: In which the shard was computed.
        recorded: Of each call what the merge job found.
    """

    _little = True

    def __init__(
        self, files: ReadFiles, numerics: Numerics, recorded: Mapping[ex.Call, Sequence[Any]]
    ) -> None:
        super().__init__(files, numerics)
        self._recorded = recorded
        self._runs: dict[ex.Call, Runs] = {}
        self._sampled: dict[tuple[ex.Call, Runs], Map] = {}
        self._columns: dict[ex.Call, Stripes | None] = {}

    def map(self, call: ex.Call) -> Map:
        """Return what a call that is computed in passes does to elements."""
        if call_needs_torch(call, self._numerics):
            load_torch()  # with one thread
        return super().map(call)

    def sampled(self, call: ex.Call, runs: Runs) -> Map:
        """Return what a call does to some elements: of rows only theirs are looked at again."""
        key = call, runs  # of which a hash takes a while
        if (found := self._sampled.get(key)) is None:
            whole = self._made.pop(call, None)
            self._runs = {call: runs}
            found = self._sampled[key] = self.map(call)
            del self._runs[call], self._made[call]
            if whole:
                self._made[call] = whole
        return found

    def _rows(self, call: ex.Call, wanted: OfRows) -> np.ndarray:
        known, runs = self._known(call), self._runs.get(call)
        if not runs or not self._recorded.get(call):
            return super()._rows(call, wanted)
        self.answers[call].append(None)
        number, length = vectors(call.inputs[0].shape, wanted.axis)
        found = None if known is None else _numbers(known)[None]
        if found is not None and found.shape != (1, number):
            raise _wrong(call, "sums of rows")
        groups = _rows_of(runs, length)
        rows = [row for begin, some in groups for row in range(begin, begin + some)]
        some = self._some_rows(call, wanted, rows)
        if found is None:  # of rows that no sample needs nothing is known
            found = np.full((len(some), number), np.nan)
        elif not same(found[:, rows], some):
            raise _wrong(call, "sums of rows")
        found[:, rows] = some
        return found

    def _some_rows(self, call: ex.Call, wanted: OfRows, rows: Sequence[int]) -> np.ndarray:
        """Return what is asked for of some rows, ascending, [values, rows]."""
        if isinstance(wanted, RowSteps) and (code := self._row_code(call, wanted)):
            length = vectors(call.inputs[0].shape, wanted.axis)[1]
            return code.of(ChosenRows(self._files, rows, length)).find(0, len(rows))
        find = self._row_finder(call, wanted)
        breaks = np.flatnonzero(np.diff(rows) > 1) + 1
        parts = [find(int(own[0]), len(own)) for own in np.split(np.array(rows), breaks)]
        return np.concatenate(parts, axis=1)

    def _row_statistics(
        self, call: ex.Call, wanted: RowStatistics
    ) -> tuple[np.ndarray, list[float]]:
        if not self._recorded.get(call):
            return super()._row_statistics(call, wanted)
        return end_of(rows_first(wanted), partial(self._answer, call))

    def _known(self, call: ex.Call) -> Any:
        rows, number = self._recorded.get(call, ()), len(self.answers[call])
        return rows[number] if number < len(rows) else None

    def _table(self, call: ex.Call, tiles: ReducedTiles, count: int) -> np.ndarray:
        if (known := self._known(call)) is None:
            return super()._table(call, tiles, count)
        number = -(-count // BLOCK)
        table = _numbers(known).reshape(-1, number) if len(_numbers(known)) % number == 0 else None
        chosen = spread_tiles(call.tensor, number)
        found = tiles.table(count, chosen)
        if table is None or len(table) != len(found) or not same(table[:, chosen], found):
            raise _wrong(call, "sums")
        return table

    def _bands(self, call: ex.Call, wanted: Bands, count: int) -> list[KeyBand]:
        if (known := self._known(call)) is None:
            return super()._bands(call, wanted, count)
        self.answers[call].append(None)
        asking = [k for k, one in enumerate(wanted.ranks) if not isinstance(one, Ranks)]
        rows, text = _with_counts(known)
        told = _told_bands(rows, len(wanted.ranks), asking)
        if told is None:
            raise _wrong(call, "thresholds")
        bands, nonzero = told
        ranks = [ranks_of(one, count, nonzero.get(k)) for k, one in enumerate(wanted.ranks)]
        expected, right = [nonzero[k] for k in asking], True
        for band, one in zip(bands, ranks, strict=True):
            if one.start < one.stop:
                expected += [one.start, one.stop - one.start]
                right &= _is_stretch(band, one, count)
            else:
                right &= band == NO_BAND
        telling = telling_bands(bands, ranks, asking)
        if not right or self._counted(call, wanted.function, telling, text) != expected:
            raise _wrong(call, "thresholds")
        return bands

    def _counted(
        self,
        call: ex.Call,
        function: Callable[[Elements], Sequence[ElementValue]],
        telling: Sequence[Telling],
        text: str | None,
        step: int = BLOCK,
    ) -> list[int] | None:
        """Return how many elements lie in bands of keys.

        Args:
            call: The call.
            function: Returns the values.
            telling: The bands.
            text: How many of each tile do, as it is recorded. Of a spread of tiles they are counted
                again; without it of all.
            step: Elements of a tile.

        Returns:
            The numbers, None if others are recorded.
        """
        if not telling:
            return []

        def masks(x: Elements) -> list[ElementValue]:
            values = function(x)
            return [x.inside(values[k], band) for k, band in telling]

        count = ex.elements(call.inputs[0])
        tiles, number = self._tiles(call, masks, "counts"), -(-count // step)
        if text is None:
            table = tiles.table(count, range(number), step)
        else:
            table = _numbers(text, "<i4")
            if len(table) != len(telling) * number or table.min() < 0:
                return None
            table, chosen = table.reshape(-1, number), spread_tiles(call.tensor, number)
            if not same(table[:, chosen], tiles.table(count, chosen, step)):
                return None
        return [int(total) for total in table.sum(axis=1)]

    def _torch_sums(self, call: ex.Call, *wanted: TorchSums) -> list[np.ndarray]:
        return [self._torch_sum(call, one) for one in wanted]

    def _torch_sum(self, call: ex.Call, wanted: TorchSums) -> np.ndarray:
        """Return recorded sums: of a spread of tiles the same is seen, and it adds up to them."""
        if (known := self._known(call)) is None:
            return super()._torch_sums(call, wanted)[0]
        self.answers[call].append(None)
        whole = self._torch_whole(call, [wanted])
        (codes,), number = whole.codes, -(-whole.count // BLOCK)
        values, chunks = len(codes), -(-whole.count // whole.chunk)
        rows, _, table = known.partition(" ") if isinstance(known, str) else ("", "", "")
        rows, table = _numbers(rows), _numbers(table)
        right = len(rows) == values * chunks and len(table) and len(table) % (number * values) == 0
        if right:
            rows, table = rows.reshape(values, chunks), table.reshape(number, values, -1)
            right = are_seen(whole, table, rows, spread_tiles(call.tensor, number))
        if right and wanted.kind == "sum" and not add_up(whole, table, rows):
            # where much cancels, what is seen of tiles says little
            right = same(whole.run()[0][0], rows)
        if not right:
            raise _wrong(call, "sums")
        return rows

    def _torch_columns(self, call: ex.Call, wanted: TorchSums) -> np.ndarray:
        """Return recorded sums of columns, of which a spread is made again."""
        if (known := self._known(call)) is None:
            return super()._torch_columns(call, wanted)
        self.answers[call].append(None)
        shape = call.inputs[0].shape
        stripes = self._stripes(call)
        tiles = self._torch_tiles(call, wanted, stripes)
        sums = _numbers(known, "<f4")
        right = len(sums) == len(tiles.codes) * math.prod(shape[1:])
        if right:
            sums = sums.reshape(len(tiles.codes), -1)
            right = same(sums[:, stripes.columns] if stripes else sums, tiles.columns())
        if not right:
            raise _wrong(call, "sums")
        return sums

    def _stripes(self, call: ex.Call) -> Stripes | None:
        """Return the columns that are looked at again, None for all."""
        if call not in self._columns:
            code = stated_dtype(call.inputs[0])
            made = Stripes.spread(call.tensor, call.inputs[0].shape, {code, "F32"})
            self._columns = {call: made}
        return self._columns[call]

    def _torch_choice(self, call: ex.Call, wanted: TorchChoice, count: int) -> list[Masks]:
        """Return masks by recorded thresholds, and by which of the elements at them are recorded.

        Of some tensors the choice is made again.
        """
        known = self._known(call)
        if known is None:
            return super()._torch_choice(call, wanted, count)
        self.answers[call].append(None)
        known, text = _with_counts(known)
        rows = told_rows(known, wanted.clipped(count))
        if rows is None:
            raise _wrong(call, "thresholds")
        whole = is_looked_at_whole(call.tensor)
        if whole and not all(row.is_counted(count) for row in rows):
            text = None
        sides = [one.sides(count) for one in rows]
        if not self._are_there(call, wanted.function, sides, text):
            raise _wrong(call, "thresholds")
        find = self._made_again if whole else self._told
        masks = [find(call, wanted, k, row) for k, row in enumerate(rows)]
        if None in masks:
            raise _wrong(call, "choices")
        return masks

    def _at_places(self, call: ex.Call, wanted: OrderStatistics) -> list[float]:
        """Return recorded values: so many lie below them, tile by tile, as ranks say."""
        if (known := self._known(call)) is None:
            return super()._at_places(call, wanted)
        self.answers[call].append(None)
        shape, ranks = call.inputs[0].shape, np.array(wanted.ranks)
        number = len(row_groups(0, *vectors(shape, "last")))
        values, _, table = known.partition(" ") if isinstance(known, str) else ("", "", "")
        values, table = _numbers(values), _numbers(table)
        right = len(values) == len(ranks) and len(table) == 2 * len(ranks) * number
        if right:
            table = table.reshape(2, len(ranks), number)
            below, upto = table.sum(axis=-1)
            chosen = spread_tiles(call.tensor, number)
            found = self._picked(call, wanted, chosen).counts(values)
            right = same(table[:, :, chosen], found)
            right &= bool((below <= ranks).all() and (ranks < upto).all())
        if not right:
            raise _wrong(call, "order statistics")
        return values.tolist()

    def _told(self, call: ex.Call, wanted: TorchChoice, k: int, row: ToldRow) -> ToldMask | None:
        count = ex.elements(call.inputs[0])
        keys = self._choice_keys(call, wanted, k)
        whole = partial(self._choose, keys, call, wanted, row.ranks, row.band)
        return ToldMask.of(row, keys, remembered_runs(call.tensor, count, BLOCK), count, whole)

    def _made_again(
        self, call: ex.Call, wanted: TorchChoice, k: int, row: ToldRow
    ) -> BitMask | None:
        """Return the mask that is found again, None if the record tells another."""
        count, keys = ex.elements(call.inputs[0]), self._choice_keys(call, wanted, k)
        mask = self._choose(keys, call, wanted, row.ranks, row.band)
        if row.is_empty:
            return mask
        runs = remembered_runs(call.tensor, count, BLOCK)
        right = open_bits(mask, keys, row.limits(count), runs) == row.text
        if row.is_counted(count):
            right &= mask.number(count) == row.ranks.stop - row.ranks.start
        return mask if right else None

    def _are_there(
        self,
        call: ex.Call,
        function: Callable[[Elements], Sequence[ElementValue]],
        sides: Sequence[Sequence[Side]],
        text: str | None,
        step: int = BLOCK,
    ) -> bool:
        """Whether elements of some ranks have some keys.

        Args:
            call, function, text, step: As of ``_counted``.
            sides: Of each value.
        """
        counts = self._counted(call, function, telling_sides(sides), text, step)
        if counts is None:
            return False
        ranks = [rank for pairs in sides for rank, _ in pairs]
        pairs = zip(ranks, counts[::2], counts[1::2], strict=True)
        return all(less <= rank < upto for rank, less, upto in pairs)

    def _order_statistics(self, call: ex.Call, wanted: OrderStatistics, count: int) -> list[int]:
        if (known := self._known(call)) is None:
            return super()._order_statistics(call, wanted, count)
        self.answers[call].append(None)
        keys, text = _with_counts(known)
        right = isinstance(keys, list) and len(keys) == len(wanted.ranks)
        if not right or not all(type(key) is int and 0 <= key <= GREATEST_KEY for key in keys):
            raise _wrong(call, "order statistics")
        sides = [list(zip(wanted.ranks, keys, strict=True))]
        if not self._are_there(call, lambda x: [wanted.function(x)], sides, text, step_of(call)):
            raise _wrong(call, "order statistics")
        return keys


def _rows_of(runs: Runs, length: int) -> list[tuple[int, int]]:
    """Return the rows that runs of elements touch, as (first, number), ascending."""
    found: list[tuple[int, int]] = []
    for first, count in runs:
        begin, end = first // length, (first + count - 1) // length + 1
        if found and sum(found[-1]) >= begin:
            begin = found.pop()[0]
        found.append((begin, end - begin))
    return found


def _is_stretch(band: KeyBand, ranks: Ranks, count: int) -> bool:
    """Whether the elements of a band have ranks one after the other."""
    if band.low == band.high:
        return band.at_low == band.at_high
    first, last = band.at_low, band.at_high
    if ranks.descending:
        first, last = last, first
    return first[1] >= count and last[0] == 0


def _with_counts(known: Any) -> tuple[Any, str | None]:
    """Return what is recorded of thresholds, and what of the number of elements beside them."""
    if isinstance(known, list) and known and isinstance(known[-1], str):
        return known[:-1], known[-1]
    return known, None


def _told_bands(
    known: Any, number: int, asking: Sequence[int]
) -> tuple[list[KeyBand], dict[int, int]] | None:
    """Return what is recorded of bands, None where that has another form.

    Args:
        known: The record.
        number: Of bands.
        asking: Those of which it is recorded too how many values are not 0.
    """
    if not isinstance(known, list) or len(known) != number:
        return None
    rows = [row if isinstance(row, list) else [] for row in known]
    sizes = [6 + (k in asking) for k in range(number)]
    bands = [_band(row[:6]) for row in rows]
    if [len(row) for row in rows] != sizes or None in bands:
        return None
    if any(type(rows[k][6]) is not int for k in asking):
        return None
    return bands, {k: rows[k][6] for k in asking}


def _band(row: Any) -> KeyBand | None:
    if len(row) != 6 or any(type(one) is not int or not 0 <= one <= 1 << 62 for one in row):
        return None
    low, high, *ends = row
    if max(low, high) > GREATEST_KEY:
        return None
    return KeyBand(low, high, (ends[0], ends[1]), (ends[2], ends[3]))


def _numbers(text: Any, kind: str = "<f8") -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), kind).astype(np.float64)
    except (ValueError, TypeError, binascii.Error):
        return np.zeros(0)


def _wrong(call: ex.Call, what: str) -> UserError:
    return UserError(
        f"{what} of whole tensors are recorded that are not those of the sources",
        f"tensor {call.tensor!r}",
        "The record is damaged, of an earlier version, or was not made from these sources: delete "
        "it and its shard, and build them again.",
    )
