"""Passes over what lies in files, before a tensor's elements are made: by native code."""

from __future__ import annotations

import base64
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import begin_passes
from shardmerge.algebra.leaves import Leaves, block_leaves, stated_dtype
from shardmerge.algebra.lowering import Steps, is_native, reduction_for, steps_for
from shardmerge.algebra.samples import remembered_runs
from shardmerge.base.dtypes import DTYPES
from shardmerge.base.numerics import Numerics
from shardmerge.engine.caught import CaughtKeys
from shardmerge.engine.halves import halved_sum
from shardmerge.engine.input_files import InputFiles
from shardmerge.engine.locations import apart
from shardmerge.engine.memory import BEHIND
from shardmerge.engine.mersenne import native_fill
from shardmerge.engine.philox import chosen_by_chance, native_stream
from shardmerge.engine.quick_choice import Boundaries, KeysOf, mask_like_torch, open_bits
from shardmerge.engine.record import Tally
from shardmerge.engine.row_chances import native_choice
from shardmerge.engine.row_steps import RowCode, lowered_steps, row_groups
from shardmerge.engine.tasks import TensorTask
from shardmerge.engine.tile_buffers import ReadFiles, TileBuffers
from shardmerge.engine.tiles import BracketCount, ReducedTiles
from shardmerge.engine.torch_tiles import TorchTiles
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.kernels.brackets import Bracket, CountKeys, Sample, find_bands, find_keys
from shardmerge.methods.kernels.masks import BitMask
from shardmerge.methods.kernels.mersenne import Mersenne
from shardmerge.methods.kernels.places import PickedValues
from shardmerge.methods.kernels.ranks import RowMasks
from shardmerge.methods.passes import (
    Bands,
    Chances,
    Counts,
    Elements,
    ElementValue,
    KeyBand,
    Map,
    Masks,
    Maxima,
    OrderStatistics,
    Ranks,
    RowChances,
    RowStatistics,
    RowSteps,
    Sums,
    TorchChoice,
    TorchDraws,
    TorchRows,
    TorchSums,
    Wanted,
    along_first,
    end_of,
    in_turn,
    rows_first,
    vectors,
)
from shardmerge.methods.program import LANES, Reducing, Reduction
from shardmerge.methods.registry import passes_of
from shardmerge.methods.symbolic import Given

#: Tensors whose steps are kept: windows come in order, so that threads work on few at a time.
_REMEMBERED = 16
#: Of each thread, how it read keys last.
_LAST = threading.local()
#: Runs of elements that tell of thresholds before a tensor is gone through; their elements, at
#: most, and at most one of so many; elements of a tensor from which on that pays.
_RUNS, _RUN, _EVERY, _SAMPLED = 64, 4096, 16, 1 << 19
#: Elements of a run at most where numbers of their rows are found first.
_RUN_OF_ROWS = 1024

#: What is asked for of rows.
OfRows = Sums | Maxima | RowSteps | TorchRows | TorchSums
#: Returns a number of each vector from a first one on, for each value: (first, count).
FindRows = Callable[[int, int], np.ndarray]


class NativePasses:
    """Finds what the calls of a tensor's expression do to its elements.

    Args:
        files: That a job reads.
        numerics: In which it computes.
    """

    #: Elements of rows that are looked at together.
    _together = BLOCK

    def __init__(self, files: ReadFiles, numerics: Numerics) -> None:
        self._files, self._numerics = files, numerics
        self._made: dict[ex.Call, Map] = {}
        self._codes: dict[tuple[ex.Call, RowSteps], RowCode | None] = {}
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

    def _answer(self, call: ex.Call, wanted: Wanted) -> Any:
        shape, count = call.inputs[0].shape, ex.elements(call.inputs[0])
        note = self.answers[call].append
        match wanted:
            case Sums(function, axis) if vectors(shape, axis)[0] == 1:
                table = self._table(call, self._tiles(call, function, "sums"), count)
                note(to_text(table))
                return halved_sum(table)[:, None]
            case Counts(function):
                table = self._table(call, self._tiles(call, function, "counts"), count)
                note(to_text(table))
                return [int(total) for total in table.sum(axis=1)]
            case Bands():
                bands = self._bands(call, wanted, count)
                note([[one.low, one.high, *one.at_low, *one.at_high] for one in bands])
                return bands
            case OrderStatistics(places=places) if places:
                return self._at_places(call, wanted)
            case TorchRows():
                return self._rows(call, wanted)
            case OrderStatistics():
                keys = self._order_statistics(call, wanted, count)
                note(keys)
                return np.array(keys, np.int32).view(np.float32).tolist()
            case TorchSums(axis=axis) if vectors(shape, axis)[0] == 1:
                return self._torch_sums(call, wanted)
            case RowStatistics():
                return self._row_statistics(call, wanted)
            case TorchChoice():
                return self._torch_choice(call, wanted, count)
            case RowSteps():
                if self._row_code(call, wanted):
                    return self._rows(call, wanted)
                return end_of(in_turn(wanted), partial(self._answer, call))
            case Sums(axis=axis) | Maxima(axis=axis) | TorchSums(axis=axis) if not along_first(
                shape, axis
            ):
                return self._rows(call, wanted)
            case Chances():
                return chosen_by_chance(wanted, count)
        note(None)
        match wanted:
            case Sums(function, axis):
                tiles = self._tiles(call, function, "sums")
                return tiles.sums_along_first(*vectors(shape, axis))
            case TorchSums():
                return self._torch_tiles(call, wanted).columns()
            case RowChances():
                return self._row_masks(call, wanted)
            case TorchDraws(seed):
                return Mersenne(seed, native_fill)
        raise TypeError(f"not known to native code: {wanted!r}")

    def _table(self, call: ex.Call, tiles: ReducedTiles, count: int) -> np.ndarray:
        """Return what each tile adds to a call's sums or counts, float64 [sums, tiles]."""
        return tiles.table(count, range(-(-count // BLOCK)))

    def _tiles(
        self,
        call: ex.Call,
        function: Callable[[Elements], Sequence[ElementValue]],
        kind: Reducing,
        reader: TileBuffers | None = None,
    ) -> ReducedTiles:
        leaves = block_leaves(call, self._files.stored, self._numerics)
        found = reduction_for(call, function, kind, leaves, self._numerics, self.map)
        return ReducedTiles(self._places(leaves), self._files, *found, reader)

    def _places(self, leaves: Leaves) -> list[Any]:
        return [apart(self._files.locate(leaf)) for leaf in leaves.files]

    def _reader(self, leaves: Leaves) -> TileBuffers:
        sizes = [DTYPES[leaf.dtype].size for leaf in leaves.files]
        return TileBuffers(self._places(leaves), self._files, sizes, BLOCK)

    def _rows(self, call: ex.Call, wanted: OfRows) -> np.ndarray:
        """Return what is asked for of vectors whose elements follow each other."""
        found = self._row_finder(call, wanted)(0, vectors(call.inputs[0].shape, wanted.axis)[0])
        # one number for each is worth to be kept
        self.answers[call].append(to_text(found) if len(found) == 1 else None)
        return found

    def _row_finder(self, call: ex.Call, wanted: OfRows) -> FindRows:
        """Return what finds numbers of some rows: (first row, number) -> [values, rows]."""
        if isinstance(wanted, RowSteps):
            return self._row_code(call, wanted).find
        if isinstance(wanted, TorchSums):
            return self._torch_tiles(call, wanted).some
        if isinstance(wanted, TorchRows):
            return self._torch_rows(call, wanted)
        length, greatest = vectors(call.inputs[0].shape, wanted.axis)[1], isinstance(wanted, Maxima)
        kind: Reducing = "maxima" if greatest and length % LANES == 0 else "sums"
        tiles = self._tiles(call, wanted.function, kind)
        reduce = tiles.maxima if greatest else tiles.sums
        return lambda begin, count: reduce(count, length, begin)

    def _row_code(self, call: ex.Call, wanted: RowSteps) -> RowCode | None:
        """Return the code that finds numbers of rows in steps, None if that takes passes."""
        if (call, wanted) not in self._codes:
            self._codes[call, wanted] = self._make_row_code(call, wanted)
        return self._codes[call, wanted]

    def _make_row_code(self, call: ex.Call, wanted: RowSteps) -> RowCode | None:
        rows, length = vectors(call.inputs[0].shape, wanted.axis)
        if length % LANES or length > BLOCK:
            return None
        leaves = block_leaves(call, self._files.stored, self._numerics)

        def lowered(kind: Reducing, function: Callable) -> tuple[Reduction, Given]:
            return reduction_for(call, function, kind, leaves, self._numerics, self.map)

        steps = lowered_steps(wanted, rows, lowered)
        if not all(step.is_whole for step in steps):
            return None
        return RowCode(self._reader(leaves), steps, length)

    def _torch_sums(self, call: ex.Call, wanted: TorchSums) -> np.ndarray:
        answer, seen = self._torch_tiles(call, wanted).answer()
        self.answers[call].append(f"{to_text(answer)} {to_text(seen)}")
        return answer

    def _torch_tiles(self, call: ex.Call, wanted: TorchSums) -> TorchTiles:
        codes: list[str] = []

        def narrow(x: Elements) -> list[ElementValue]:
            made = wanted.function(x)
            codes[:] = [value.dtype for value in made]
            return made

        def wide(x: Elements) -> list[ElementValue]:
            return [value.double() for value in wanted.function(x)]

        self._tiles(call, narrow, "counts")
        (code,) = set(codes)
        kind: Reducing = "rows" if code == "F32" else "pairs"
        if wanted.kind == "norm":
            kind = "numbers" if code == "F16" else "lanes"
        tiles, rest = self._tiles(call, narrow, kind), self._tiles(call, wide, "sums")
        return TorchTiles(wanted, call.inputs[0].shape, codes, tiles, rest)

    def _row_masks(self, call: ex.Call, wanted: RowChances) -> list[Masks]:
        ranks = None
        if wanted.by_torch:
            from shardmerge.engine.buffers import torch_dtype
            from shardmerge.engine.quick_ranks import ranks_like_torch

            ranks = partial(ranks_like_torch, dtype=torch_dtype(stated_dtype(call.inputs[0])))

        def keys(x: Elements) -> list[ElementValue]:
            return [value.key() for value in wanted.function(x)]

        def values(first: int, count: int) -> np.ndarray:
            # a thread asks for many groups of a tensor's rows in turn, and its buffers are its own
            if getattr(_LAST, "keys", None) is not keys:
                _LAST.keys, _LAST.tiles = keys, self._tiles(call, keys, "bits")
            return _LAST.tiles.bits(first, count).view(np.float32)

        wanted = replace(wanted, numbers=tuple(map(native_stream, wanted.numbers)))
        choose = [native_choice(bounds, ranks) for bounds in wanted.bounds]
        shape = call.inputs[0].shape
        return RowMasks(values, wanted, shape, choose, self._together).masks()

    def _torch_choice(self, call: ex.Call, wanted: TorchChoice, count: int) -> list[Masks]:
        """Return the masks of what torch puts at some ranks, one value after the other."""
        counted, sample = self._keys(call, wanted.function, count, {})
        # where equal elements lie is not asked for
        bands = find_bands(wanted.ranks, count, 32, counted, lambda *_: 0, sample)
        rows, masks = [], []
        for k, (ranks, band) in enumerate(zip(wanted.clipped(count), bands, strict=True)):
            keys = self._choice_keys(call, wanted, k)
            mask = self._choose(keys, call, wanted, ranks, band)
            limits = Boundaries.of(ranks, count, band.low, band.high)
            runs = remembered_runs(call.tensor, count, BLOCK)
            rows.append([band.low, band.high, open_bits(mask, keys, limits, runs)])
            masks.append(mask)
        self.answers[call].append(rows)
        return masks

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


def _runs(count: int, length: int = 0) -> list[tuple[int, int]]:
    """Return the runs of elements that are a sample: (first, number), all of one length.

    Args:
        count: Elements of the tensor.
        length: Elements of a row, of which few are looked at; 0 where rows do not matter.
    """
    step, run = (count // some // LANES * LANES for some in (_RUNS, _RUNS * _EVERY))
    most = min(_RUN_OF_ROWS, length) if length else _RUN
    return [(first * step, min(run, most)) for first in range(_RUNS)]


class StepsOf:
    """The steps of output tensors, those of calls in passes too.

    Args:
        tasks: Of the shard's tensors.
        files: That a job reads.
        tally: Where what was found is noted.
    """

    def __init__(self, tasks: Sequence[TensorTask], files: InputFiles, tally: Tally) -> None:
        self._tasks, self._files, self._tally = tasks, files, tally
        self._lock = threading.Lock()
        self._found: OrderedDict[int, Future[Steps]] = OrderedDict()

    def __call__(self, tensor: int) -> Steps:
        """Return the steps of an output tensor; the first thread that asks makes its passes."""
        task = self._tasks[tensor]
        if not task.calls:
            return task.steps
        with self._lock:
            found = self._found.get(tensor)
            mine = found is None
            if mine:
                self._found[tensor] = found = Future()
                self._forget()
        if mine:
            try:
                found.set_result(self._make(task))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def _forget(self) -> None:
        """Drop what is found of the first tensors, whose windows are done."""
        _, *between = self._found
        behind = sum(math.prod(self._tasks[one].tensor.shape) for one in between[:-1])
        while len(self._found) > _REMEMBERED or behind >= BEHIND:
            self._found.popitem(last=False)
            behind -= math.prod(self._tasks[between.pop(0)].tensor.shape)

    def _make(self, task: TensorTask) -> Steps:
        maps = native_maps(task, self._files, self._tally)
        rest = task.leaves, task.direct, task.numerics, maps.__getitem__
        return steps_for(task.expression, task.tensor.dtype, *rest)


def native_maps(task: TensorTask, files: InputFiles, tally: Tally) -> dict[ex.Call, Map]:
    """Return what those of a tensor's calls in passes do whose passes native code can make.

    Torch may make the elements, as where rows are taken of a result.

    Args:
        task: Of the tensor.
        files: That are read.
        tally: Where what was found is noted.
    """
    from shardmerge.engine.native import is_usable

    passes, numerics = NativePasses(files, task.numerics), task.numerics
    native = [one for one in task.calls if is_native(one, files.stored, numerics)]
    maps = {call: passes.map(call) for call in (native if is_usable() else ())}
    if maps:
        tally.add_passes(task.tensor.name, [passes.answers.get(one, []) for one in task.calls])
    return maps


def to_text(table: np.ndarray) -> str:
    """Return float64 numbers as text, for a record."""
    return base64.b64encode(table.astype("<f8").tobytes()).decode()
