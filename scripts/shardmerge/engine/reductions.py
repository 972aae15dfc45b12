"""Native code for reductions: sums in a fixed order, and counts, tile by tile.

A tile's sum is made by halves: element i and i + n / 2 are added, then i and i + n / 4, and so on,
as ``kernels.blocks.tree_sum`` does. The first of these steps are written out, so that the tile's
values never lie in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from shardmerge.engine import torch_order
from shardmerge.engine.assembly import DECLARATIONS, DOUBLE, INT, LANES, StepLines, loop_text
from shardmerge.engine.counting import digits_text, masks_text
from shardmerge.engine.native import compiled, last_elements
from shardmerge.methods.contract import BLOCK
from shardmerge.methods.program import IN_TORCH_ORDER, Reduction

if TYPE_CHECKING:
    from collections.abc import Callable

#: Parts of a tile that are added up at once, by the most sums for which registers are enough.
_WAYS = ((4, 8), (12, 4), (1 << 30, 2))


@dataclass(frozen=True)
class NativeReduction:
    """A reduction's native code.

    Args:
        reduction: What it computes.
        functions: By the number of parts of a tile that are added up, with what keeps them alive.
    """

    reduction: Reduction
    functions: dict[int, tuple[Callable[..., None], Any]] = field(default_factory=dict)

    def sums(self, leaves: Sequence[int], count: int, constants: Sequence[float]) -> np.ndarray:
        """Return values that add up to a tile's sums by halves, float64 [sums, some].

        Args:
            leaves: Address of the first element of each leaf.
            count: Elements, at most BLOCK.
            constants: That the steps name.
        """
        kept = len(self.reduction.values)
        if count < BLOCK:
            return self.values(leaves, count, constants)
        ways = next(w for most, w in _WAYS if kept <= most)
        buffer = np.empty((kept, BLOCK // ways))
        self._call(ways, buffer, leaves, count, constants)
        return buffer[:, :LANES].copy()

    def values(self, leaves: Sequence[int], count: int, constants: Sequence[float]) -> np.ndarray:
        """Return the values themselves, float64 [sums, elements]."""
        kept, whole = len(self.reduction.values), count // LANES * LANES
        buffer = np.empty((kept, max(whole, 1)))
        if whole:
            self._call(1, buffer, leaves, whole, constants)
        if not (rest := count - whole):
            return buffer
        last = np.empty((kept, LANES))
        buffers = last_elements(self.reduction, leaves, whole, rest)
        self._call(1, last, [ctypes.addressof(one) for one in buffers], LANES, constants)
        return np.concatenate([buffer[:, :whole], last[:, :rest]], axis=1)

    def parts(
        self, rows: int, leaves: Sequence[int], count: int, constants: Sequence[float]
    ) -> np.ndarray:
        """Return what torch adds up first, float32 [sums, parts, LANES].

        Args:
            rows: Vectors, or pairs of them, of a part.
            leaves: Address of the first element of each leaf.
            count: Elements, of whole parts.
            constants: That the steps name.
        """
        width = LANES * (2 if self.reduction.kind == "pairs" else 1)
        made = np.empty((len(self.reduction.values), count // (rows * width), LANES), np.float32)
        self._call(rows, made, leaves, count, constants)
        return made

    def add_squares(
        self, sums: np.ndarray, leaves: Sequence[int], count: int, constants: Sequence[float]
    ) -> None:
        """Add squares to sums as torch does for a norm.

        Args:
            sums: float32 [values, lanes], which grow.
            leaves: Address of the first element of each leaf.
            count: Elements, of whole vectors.
            constants: That the steps name.
        """
        self._call(1, sums, leaves, count, constants)

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
        """Return the keys themselves, uint32 [values, elements].

        Args:
            leaves: Address of the first element of each leaf, of which whole vectors can be read.
            count: Elements.
            constants: That the steps name.
        """
        whole = -(-count // LANES) * LANES
        found = np.empty((len(self.reduction.values), whole), np.uint32)
        self._call(1, found, leaves, whole, constants)
        return found[:, :count]

    def add_digits(
        self,
        tables: np.ndarray,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
        prefixes: np.ndarray,
    ) -> None:
        """Count halves of keys.

        Args:
            tables: uint32 [values, TABLES, DIGITS + LANES], counted up; the last are of no use.
            leaves: Address of the first element of each leaf, of which whole vectors can be read.
            count: Elements.
            constants: That the steps name.
            prefixes: For each value the high half of which low halves are counted, int32.
        """
        self._call(1, tables, leaves, count, constants, prefixes)

    def _call(
        self,
        ways: int,
        output: np.ndarray,
        leaves: Sequence[int],
        count: int,
        constants: Sequence[float],
        prefixes: np.ndarray | None = None,
    ) -> None:
        if ways not in self.functions:
            self.functions[ways] = compiled(_text(self.reduction, ways))
        addresses = (ctypes.c_void_p * len(leaves))(*leaves)
        numbers = (ctypes.c_double * len(constants))(*constants)
        more = None if prefixes is None else prefixes.ctypes.data
        self.functions[ways][0](output.ctypes.data, addresses, count, numbers, more)


@cache
def native_reduction(reduction: Reduction) -> NativeReduction:
    """Return a reduction's native code, made when it is first used."""
    return NativeReduction(reduction)


_HEAD = "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %prefixes) {"


def _text(reduction: Reduction, ways: int) -> str:
    if reduction.kind in IN_TORCH_ORDER:
        return torch_order.parts_text(reduction, ways, _HEAD)
    if reduction.kind == "sums":
        return _sums(reduction, ways)
    if reduction.kind == "bits":
        return _bits(reduction)
    counted = masks_text if reduction.kind == "counts" else digits_text
    return counted(reduction, _HEAD)


def _sums(reduction: Reduction, ways: int) -> str:
    """Return a function that adds up parts of a tile, then halves what is left to a vector.

    It writes the values [sums, count / ways]; with one part only the values themselves.
    """
    writer = StepLines(reduction)
    kept = range(len(reduction.values))
    entry = writer.entry()
    parts = []
    for way in range(ways):
        at = "%i" if way == 0 else writer.new(f"add i64 %i, %part{way}")
        writer.values(at, f"w{way}v")
        parts.append([writer.value(value) for value in reduction.values])
    for k in kept:
        total = _halved(writer, [part[k] for part in parts])
        row = writer.new(f"mul i64 %stride, {k}")
        row = writer.new(f"add i64 {row}, %i")
        place = writer.place("%output", "F64", row)
        writer.lines.append(f"  store {DOUBLE} {total}, ptr {place}, align 8")
    shift = ways.bit_length() - 1
    folds = [line for k in kept for line in _fold(k)] if ways > 1 else []
    return "\n".join([
        _HEAD,
        "entry:",
        *entry,
        f"  %stride = lshr i64 %count, {shift}",
        *(f"  %part{way} = mul i64 %stride, {way}" for way in range(1, ways)),
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [0, %entry], [%after, %loop]",
        *writer.lines,
        f"  %after = add i64 %i, {LANES}",
        "  %more = icmp ult i64 %after, %stride",
        "  br i1 %more, label %loop, label %fold0",
        *folds,
        f"fold{len(kept) if ways > 1 else 0}:",
        "  ret void",
        "}",
        *DECLARATIONS,
    ])  # fmt: skip


def _bits(reduction: Reduction) -> str:
    """Return a function that writes keys [values, count], of whole vectors."""
    writer = StepLines(reduction)
    entry = writer.entry()
    writer.values()
    for k, key in enumerate(map(writer.value, reduction.values)):
        row = writer.new(f"mul i64 %count, {k}")
        place = writer.place("%output", "U32", writer.new(f"add i64 {row}, %i"))
        writer.lines.append(f"  store {INT} {key}, ptr {place}, align 4")
    return loop_text(_HEAD, entry, (), writer.lines, ())


def _halved(writer: StepLines, parts: list[str]) -> str:
    """Write the sum of parts by halves; return its name."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [writer.new(f"fadd {DOUBLE} {a}, {b}")
                 for a, b in zip(parts[:half], parts[half:], strict=True)]  # fmt: skip
    return parts[0]


def _fold(k: int) -> list[str]:
    """Return the blocks that add up a row of the output by halves, down to one vector."""
    return [
        f"fold{k}:",
        f"  %row{k}.offset = mul i64 %stride, {k}",
        f"  %row{k} = getelementptr double, ptr %output, i64 %row{k}.offset",
        f"  br label %level{k}",
        f"level{k}:",
        f"  %size{k} = phi i64 [%stride, %fold{k}], [%half{k}, %end{k}]",
        f"  %half{k} = lshr i64 %size{k}, 1",
        f"  %small{k} = icmp ult i64 %half{k}, {LANES}",
        f"  br i1 %small{k}, label %fold{k + 1}, label %add{k}",
        f"add{k}:",
        f"  %j{k} = phi i64 [0, %level{k}], [%next{k}, %add{k}]",
        f"  %a{k}.at = getelementptr double, ptr %row{k}, i64 %j{k}",
        f"  %far{k} = add i64 %j{k}, %half{k}",
        f"  %b{k}.at = getelementptr double, ptr %row{k}, i64 %far{k}",
        f"  %a{k} = load {DOUBLE}, ptr %a{k}.at, align 8",
        f"  %b{k} = load {DOUBLE}, ptr %b{k}.at, align 8",
        f"  %s{k} = fadd {DOUBLE} %a{k}, %b{k}",
        f"  store {DOUBLE} %s{k}, ptr %a{k}.at, align 8",
        f"  %next{k} = add i64 %j{k}, {LANES}",
        f"  %left{k} = icmp ult i64 %next{k}, %half{k}",
        f"  br i1 %left{k}, label %add{k}, label %end{k}",
        f"end{k}:",
        f"  br label %level{k}",
    ]
