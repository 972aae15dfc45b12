"""Native code for reductions: sums in a fixed order, and counts, tile by tile.

A tile's sum is made by halves: element i and i + n / 2 are added, then i and i + n / 4, and so on,
as ``kernels.blocks.tree_sum`` does. The first of these steps are written out, so that the tile's
values never lie in memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shardmerge.engine import torch_order
from shardmerge.engine.assembly import LANES, STORED, StepLines, element, loop_text, rows_text
from shardmerge.engine.counting import caught_text, keys_text, masks_text, maxima_text
from shardmerge.engine.machine_code import compiled
from shardmerge.engine.native import last_elements, place_of
from shardmerge.engine.scratch import scratch
from shardmerge.methods.program import IN_TORCH_ORDER, Reduction

if TYPE_CHECKING:
    from collections.abc import Callable

#: Parts of a tile that are added up at once, by the most sums for which registers are enough.
_WAYS = ((4, 8), (12, 4), (1 << 30, 2))
#: Steps from which on adding up is little of the work: parts at most, less text to compile.
_LONG, _FEWER = 32, 4
#: Of what sums are made in, by code.
_KINDS = {"F64": "<f8", "F32": "<f4"}


@dataclass(frozen=True)
class NativeReduction:
    """A reduction's native code.

    Args:
        reduction: What it computes.
        little: Whether it is done to few tiles, so that its code takes longer to be made than to
            run: it adds up half as many parts at once. The sums are the same.
        functions: By the number of parts of a tile that are added up.
    """

    reduction: Reduction
    little: bool = False
    functions: dict[int, Callable[..., None]] = field(default_factory=dict)

    @property
    def _kind(self) -> str:
        """What sums are made in, as numpy's type."""
        return _KINDS[self.reduction.code]

    def sums(
        self, rows: int, leaves: Sequence[int], count: int, constants: Sequence[float]
    ) -> np.ndarray:
        """Return values that add up to the sums of rows by halves, [sums, rows, some].

        Args:
            rows: How many there are, each with as many elements.
            leaves: Address of the first element of each leaf.
            count: Elements of all rows, at most BLOCK.
            constants: That the steps name.
        """
        kept, length = len(self.reduction.values), count // rows
        ways, left = halving(self.reduction, length, little=self.little)
        if ways == 1:
            return self.values(leaves, count, constants).reshape(kept, rows, length)
        # the parts of a row lie behind what is left of the rows before: room for one is enough
        shape = kept, length // ways + (rows - 1) * left
        buffer = scratch(f"parts {self._kind}", math.prod(shape), self._kind).reshape(shape)
        self._call(ways, buffer, leaves, length, constants, np.array([rows, left], np.int64))
        return buffer[:, : rows * left].reshape(kept, rows, left).copy()

    def text(self, ways: int) -> str:
        """Return the text of the code for so many parts of a row."""
        return _text(self.reduction, ways)

    def address(self, ways: int) -> int:
        """Return the address of the code for so many parts of a row."""
        return ctypes.cast(self._function(ways), ctypes.c_void_p).value

    def maxima(
        self, rows: int, leaves: Sequence[int], count: int, constants: Sequence[float]
    ) -> np.ndarray:
        """Return the greatest values of rows, float64 [values, rows]; see ``sums``."""
        kept = len(self.reduction.values)
        found = np.empty((kept, rows, LANES))
        number = np.array(rows, np.int64)
        self._call(1, found, leaves, count // rows, constants, number)
        return found.max(axis=-1)

    def values(self, leaves: Sequence[int], count: int, constants: Sequence[float]) -> np.ndarray:
        """Return the values themselves, [sums, elements]."""
        kept, whole = len(self.reduction.values), count // LANES * LANES
        buffer = np.empty((kept, max(whole, 1)), self._kind)
        one = np.array([1, 0], np.int64)
        if whole:
            self._call(1, buffer, leaves, whole, constants, one)
        if not (rest := count - whole):
            return buffer
        last = np.empty((kept, LANES), self._kind)
        buffers = last_elements(self.reduction, leaves, whole, rest)
        self._call(1, last, [ctypes.addressof(one) for one in buffers], LANES, constants, one)
        return np.concatenate([buffer[:, :whole], last[:, :rest]], axis=1)

    def parts(
        self, rows: int, leaves: Sequence[int], count: int, constants: Sequence[float]
    ) -> np.ndarray:
        """Return what torch adds up first, float32 [sums, parts, LANES], until the next call.

        Args:
            rows: Vectors, or pairs of them, of a part.
            leaves: Address of the first element of each leaf.
            count: Elements, of whole parts.
            constants: That the steps name.
        """
        width = LANES * (2 if self.reduction.kind == "pairs" else 1)
        shape = len(self.reduction.values), count // (rows * width), LANES
        made = scratch("torch's parts", math.prod(shape), np.float32).reshape(shape)
        self._call(rows, made, leaves, count, constants)
        return made

    def add_squares(
        self,
        sums: np.ndarray,
        rows: np.ndarray,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
    ) -> None:
        """Add squares to sums as torch does for a norm.

        Args:
            sums: float32 [rows, values, lanes], which grow.
            rows: The elements of a row, of whole vectors, and how many rows behind its own a row's
                sums are written, int64 [2].
            leaves: Address of the first element of each leaf.
            count: Elements of all rows; the last may be shorter.
            constants: That the steps name.
        """
        self._call(1, sums, leaves, count, constants, rows)

    def add_whole(
        self,
        squares: np.ndarray,
        rows: int,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
        told: np.ndarray,
    ) -> None:
        """Add squares, and values, of whole tiles as torch does, or of parts of less than one.

        Args:
            squares: float32 [tiles + 1, norms, lanes]: the sums before the first, which get those
                after each.
            rows: Vectors, or pairs of them, of a part.
            leaves: Address of the first element of each leaf.
            count: Elements, of whole parts; of whole vectors where no values are added up.
            constants: That the steps name.
            told: The elements of a tile, 1, and what else ``torch_order`` needs where values are
                added up, int64.
        """
        self._call(rows, squares, leaves, count, constants, told)

    def counts(self, leaves: Sequence[int], count: int, constants: Sequence[float]) -> np.ndarray:
        """Return in how many elements each mask is set, int64 [masks]."""
        kept, whole = len(self.reduction.values), count // LANES * LANES
        total = np.zeros(kept, np.int64)
        found = np.zeros((kept, LANES), np.int32)
        if whole:
            self._call(1, found, leaves, whole, constants)
            total += found.sum(axis=1)
        if rest := count - whole:
            buffers = last_elements(self.reduction, leaves, whole, rest)
            self._call(1, found, [ctypes.addressof(one) for one in buffers], LANES, constants)
            total += found[:, :rest].sum(axis=1)
        return total

    def bits(self, leaves: Sequence[int], count: int, constants: Sequence[float]) -> np.ndarray:
        """Return the keys themselves, or the bits of float32, uint32 [values, elements].

        Args:
            leaves: Address of the first element of each leaf, of which whole vectors can be read.
            count: Elements.
            constants: That the steps name.
        """
        whole = -(-count // LANES) * LANES
        kept = len(self.reduction.values)
        # of the last values too whole vectors can be read
        found = np.empty(kept * whole + LANES, np.uint32)
        self._call(1, found, leaves, whole, constants)
        return found[: kept * whole].reshape(kept, whole)[:, :count]

    def add_keys(
        self,
        tables: np.ndarray,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
        brackets: np.ndarray,
    ) -> None:
        """Count keys by where they lie in brackets.

        Args:
            tables: uint32, counted up: of each value how many lie below the bracket (LANES numbers)
                and in each part of it.
            leaves: Address of the first element of each leaf, of which whole vectors can be read.
            count: Elements.
            constants: That the steps name.
            brackets: Of each value the least key, the bits of a part's length, the number of
                parts, and where its table begins, int32 [values, 4].
        """
        self._call(1, tables, leaves, count, constants, brackets)

    def catch(
        self,
        found: np.ndarray,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
        more: np.ndarray,
    ) -> None:
        """Count keys of tiles that lie below brackets, and keep those that lie in them.

        Args:
            found: int32, of each bracket room for the keys that are kept; where they are
                ``marked``, then of each for where they are among all elements, then of each for
                bits of the elements whose keys lie beyond it.
            leaves: Address of the first element of each leaf, of which whole vectors can be read.
            count: Elements of a tile.
            constants: That the steps name.
            more: Of ``counting.CAUGHT``, brackets and tiles, int64.
        """
        self._call(1, found, leaves, count, constants, more)

    def _call(
        self,
        ways: int,
        output: np.ndarray,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
        more: np.ndarray | None = None,
    ) -> None:
        function = self._function(ways)
        addresses = (ctypes.c_void_p * len(leaves))(*leaves)
        numbers = (ctypes.c_double * len(constants))(*constants)
        last = None if more is None else place_of(more)
        function(place_of(output), addresses, count, numbers, last)

    def _function(self, ways: int) -> Callable[..., None]:
        if ways not in self.functions:
            self.functions[ways] = compiled(self.text(ways))
        return self.functions[ways]


def halving(reduction: Reduction, length: int, *, little: bool = False) -> tuple[int, int]:
    """Return how many parts of a row are added up at once, and how many values are left of it.

    Args:
        reduction: Which adds up.
        length: Elements of a row.
        little: Whether half as many parts are enough.
    """
    most = next(ways for kinds, ways in _WAYS if len(reduction.values) <= kinds)
    most = min(most, _FEWER) if len(reduction.steps) >= _LONG else most
    most = most // 2 if little else most
    vectors, rest = divmod(length, LANES)
    halves = 1 if rest else vectors & -vectors
    return (1, length) if halves == 1 else (min(most, halves), length // halves)


@cache
def native_reduction(reduction: Reduction, *, little: bool = False) -> NativeReduction:
    """Return a reduction's native code, made when it is first used.

    Args:
        reduction: What it computes.
        little: Whether it is done to few tiles.
    """
    return NativeReduction(reduction, little)


_HEAD = "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %extra) {"


def _text(reduction: Reduction, ways: int) -> str:
    if reduction.kind in IN_TORCH_ORDER:
        return torch_order.parts_text(reduction, ways, _HEAD)
    if reduction.kind == "sums":
        return _sums(reduction, ways)
    if reduction.kind == "bits":
        return _bits(reduction)
    of = {"maxima": maxima_text, "counts": masks_text, "keys": keys_text}
    of |= dict.fromkeys(("caught", "marked"), caught_text)
    return of[reduction.kind](reduction, _HEAD)


def _sums(reduction: Reduction, ways: int) -> str:
    """Return a function that adds up parts of rows, then halves what is left as far as it can.

    It writes what is left of rows, as far apart as %extra says after their number. The parts of the
    last lie there, so that values are count / ways and those distances apart. With one part it
    writes the values themselves.
    """
    writer, kind = StepLines(reduction), STORED[reduction.code]
    kept = range(len(reduction.values))
    entry = writer.entry()
    parts = []
    for way in range(ways):
        at = "%at" if way == 0 else writer.new(f"add i64 %at, %part{way}")
        writer.values(at, f"w{way}v")
        parts.append([writer.value(value) for value in reduction.values])
    for k in kept:
        total = _halved(writer, [part[k] for part in parts], kind)
        place = writer.place(f"%row{k}", reduction.code)
        writer.lines.append(f"  store {kind} {total}, ptr {place}, align 4")
    shift = ways.bit_length() - 1
    folds = [line for k in kept for line in _fold(k, kind)] if ways > 1 else []
    entry += ["  %rows = load i64, ptr %extra", f"  %stride = lshr i64 %count, {shift}"]
    entry += ["  %apart.at = getelementptr i64, ptr %extra, i64 1"]
    entry += ["  %apart = load i64, ptr %apart.at", "  %others = sub i64 %rows, 1"]
    entry += ["  %before = mul i64 %others, %apart", "  %all = add i64 %before, %stride"]
    entry += [f"  %part{way} = mul i64 %stride, {way}" for way in range(1, ways)]
    entry += [f"  %all{k} = mul i64 %all, {k}" for k in kept]
    begin = ["  %row.offset = mul i64 %r, %apart", *(line for k in kept for line in (
        f"  %row{k}.offset = add i64 %all{k}, %row.offset",
        f"  %row{k} = getelementptr {element(kind)}, ptr %output, i64 %row{k}.offset",
    ))]  # fmt: skip
    after = [*folds, f"fold{len(kept) if ways > 1 else 0}:", "  br label %end"]
    return rows_text(_HEAD, entry, begin, (), writer.lines, "%stride", after)


def _bits(reduction: Reduction) -> str:
    """Return a function that writes keys, or float32, [values, count], of whole vectors."""
    writer = StepLines(reduction)
    entry = writer.entry()
    writer.values()
    for k, key in enumerate(map(writer.value, reduction.values)):
        row = writer.new(f"mul i64 %count, {k}")
        place = writer.place("%output", "U32", writer.new(f"add i64 {row}, %i"))
        writer.lines.append(f"  store {writer.typed(key)}, ptr {place}, align 4")
    return loop_text(_HEAD, entry, (), writer.lines, ())


def _halved(writer: StepLines, parts: list[str], kind: str) -> str:
    """Write the sum of parts by halves; return its name."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [writer.new(f"fadd {kind} {a}, {b}")
                 for a, b in zip(parts[:half], parts[half:], strict=True)]  # fmt: skip
    return parts[0]


def _fold(k: int, kind: str) -> list[str]:
    """Return the blocks that add up a row of the output by halves, down to an odd number."""
    return [
        f"fold{k}:",
        f"  br label %level{k}",
        f"level{k}:",
        f"  %size{k} = phi i64 [%stride, %fold{k}], [%half{k}, %end{k}]",
        f"  %half{k} = lshr i64 %size{k}, 1",
        f"  %last{k} = and i64 %half{k}, {LANES - 1}",
        f"  %small{k} = icmp ne i64 %last{k}, 0",
        f"  br i1 %small{k}, label %fold{k + 1}, label %add{k}",
        f"add{k}:",
        f"  %j{k} = phi i64 [0, %level{k}], [%next{k}, %add{k}]",
        f"  %a{k}.at = getelementptr {element(kind)}, ptr %row{k}, i64 %j{k}",
        f"  %far{k} = add i64 %j{k}, %half{k}",
        f"  %b{k}.at = getelementptr {element(kind)}, ptr %row{k}, i64 %far{k}",
        f"  %a{k} = load {kind}, ptr %a{k}.at, align 4",
        f"  %b{k} = load {kind}, ptr %b{k}.at, align 4",
        f"  %s{k} = fadd {kind} %a{k}, %b{k}",
        f"  store {kind} %s{k}, ptr %a{k}.at, align 4",
        f"  %next{k} = add i64 %j{k}, {LANES}",
        f"  %left{k} = icmp ult i64 %next{k}, %half{k}",
        f"  br i1 %left{k}, label %add{k}, label %end{k}",
        f"end{k}:",
        f"  br label %level{k}",
    ]
