"""Native code for steps: one pass over memory for a whole expression, made by LLVM when used."""

from __future__ import annotations

import ctypes
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from llvmlite import binding

from shardmerge.base.dtypes import DTYPES
from shardmerge.engine.assembly import (
    DECLARATIONS,
    DOUBLE,
    FLOAT,
    LANES,
    MASK,
    STORED,
    StepLines,
    vector_of,
)
from shardmerge.engine.machine_code import compiled
from shardmerge.methods.program import Program, Reduction

if TYPE_CHECKING:
    import numpy as np

#: Elements after which sums of squares go from float32 to float64.
_CHUNK = 1 << 14
#: Of each type its bits, those of an infinity, and which are no sign.
_INFINITE = {
    "F16": ("i16", 0x7C00, 0x7FFF),
    "BF16": ("i16", 0x7F80, 0x7FFF),
    "F32": ("i32", 0x7F800000, 0x7FFFFFFF),
}


@cache
def is_usable() -> bool:
    """Whether this processor converts float16 by itself."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return bool(binding.get_host_cpu_features().get("f16c"))
    return machine in ("aarch64", "arm64")


@dataclass(frozen=True)
class Native:
    """A program's native code.

    Args:
        program: What it computes.
        function: Takes the address of the output, an array of the leaves' addresses, the number of
            elements (a multiple of LANES), the constants and where sums go.
    """

    program: Program
    function: Callable[..., None]

    def run(
        self, output: int, leaves: Sequence[int], count: int, constants: Sequence[float]
    ) -> tuple[bool, list[float]]:
        """Compute elements.

        Args:
            output: Address of the first element's place.
            leaves: Address of the first element of each leaf, of what is loaded last.
            count: Elements, at least one.
            constants: That the program names.

        Returns:
            Whether all results are finite, and the sum of squares of each measured value.
        """
        whole = count // LANES * LANES
        numbers = (ctypes.c_double * len(constants))(*constants)
        calls = [self._call(output, leaves, whole, numbers)] if whole else []
        if rest := count - whole:
            calls.append(self._rest(output, leaves, whole, rest, numbers))
        finite, *squares = (math.fsum(chain(*rows)) for rows in zip(*calls, strict=True))
        return finite == 0, squares

    def _rest(
        self, output: int, leaves: Sequence[int], done: int, count: int, constants: ctypes.Array
    ) -> list[list[float]]:
        """Compute the last elements, which fill no vector, in buffers of one."""
        size = DTYPES[self.program.output].size
        buffers = last_elements(self.program, leaves, done, count)
        result = (ctypes.c_uint8 * (LANES * size))()
        addresses = [ctypes.addressof(buffer) for buffer in buffers]
        sums = self._call(ctypes.addressof(result), addresses, LANES, constants)
        ctypes.memmove(output + done * size, result, count * size)
        return [row[:count] for row in sums]  # what is made of no element may be NaN

    def _call(
        self, output: int, leaves: Sequence[int], count: int, constants: ctypes.Array
    ) -> list[list[float]]:
        """Compute whole vectors; return for each sum what it has in every place of a vector."""
        addresses = (ctypes.c_void_p * len(leaves))(*leaves)
        sums = ((ctypes.c_double * LANES) * (1 + len(self.program.measured)))()
        self.function(output, addresses, count, constants, sums)
        return [list(row) for row in sums]


@cache
def native(program: Program) -> Native:
    """Return a program's native code."""
    return Native(program, compiled(assembly(program)))


def place_of(array: np.ndarray) -> int:
    """Return where a contiguous array's elements lie."""
    # a fifth of the time that numpy's own way takes
    if array.flags.writeable and array.nbytes:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    return array.ctypes.data


class ArrayCode:
    """Native code that works on arrays.

    Args:
        text: The function in LLVM's assembly language.
        effort: As ``compiled`` has it.
    """

    def __init__(self, text: str, effort: int = 2) -> None:
        self._function = compiled(text, effort)

    def __call__(
        self, output: np.ndarray, arrays: Sequence[np.ndarray], count: int, more: Sequence[int] = ()
    ) -> None:
        """Run it.

        Args:
            output: What it writes.
            arrays: What it reads, and room to work in; all contiguous.
            count: Its number of elements.
            more: Other numbers that it takes.
        """
        self.run(place_of(output), [*map(place_of, arrays)], count, more)

    def run(
        self,
        output: int,
        arrays: Sequence[int],
        count: int,
        more: Sequence[int] = (),
        constants: Sequence[float] = (),
    ) -> None:
        """Run it with the addresses of arrays."""
        addresses = (ctypes.c_void_p * len(arrays))(*arrays)
        numbers = (ctypes.c_int64 * len(more))(*more)
        wide = (ctypes.c_double * len(constants))(*constants)
        self._function(output, addresses, count, wide, ctypes.addressof(numbers))

    @property
    def address(self) -> int:
        """Where the code lies."""
        return ctypes.cast(self._function, ctypes.c_void_p).value


@cache
def array_code(write: Callable[..., str], *how: Any, effort: int = 2) -> ArrayCode:
    """Return the code of a text, made once: what writes it, and that one's arguments."""
    return ArrayCode(write(*how), effort)


def last_elements(
    program: Program | Reduction, leaves: Sequence[int], done: int, count: int
) -> list[ctypes.Array]:
    """Return buffers of one vector each with the elements of leaves that fill none.

    Args:
        program: Whose leaves they are.
        leaves: Address of the first element of each, then of tables.
        done, count: The first of those elements, a multiple of LANES, and their number.
    """
    sizes = element_bits(program)
    buffers = [(ctypes.c_uint8 * (LANES * one // 8))() for one in sizes]
    for buffer, leaf, one in zip(buffers, leaves, sizes, strict=False):
        ctypes.memmove(buffer, leaf + done * one // 8, -(-count * one // 8))
    tables = (ctypes.c_uint8 * 0).from_address
    return [*buffers, *map(tables, leaves[len(buffers) :])]


def element_bits(program: Program | Reduction) -> list[int]:
    """Return the bits of an element of each leaf, less those of tables."""
    codes = *program.leaves, *program.loads
    return [1 if code == "BIT" else DTYPES[code].bits for code in codes]


def assembly(program: Program) -> str:
    """Return a program as a function in LLVM's assembly language."""
    writer = StepLines(program)
    sums = range(1, 1 + len(program.measured))
    bits, infinite, magnitudes = _INFINITE[program.output]
    whole = f"<{LANES} x {bits}>"
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %sums) {",
        "entry:",
        *writer.entry(),
        "  br label %chunk",
        "chunk:",
        "  %begin = phi i64 [0, %entry], [%end, %flush]",
        f"  %most.before = phi {whole} [zeroinitializer, %entry], [%most.after, %flush]",
        *(f"  %total{k} = phi {DOUBLE} [zeroinitializer, %entry], [%next{k}, %flush]"
          for k in sums),
        f"  %far = add i64 %begin, {_CHUNK}",
        "  %inside = icmp ult i64 %far, %count",
        "  %end = select i1 %inside, i64 %far, i64 %count",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [%begin, %chunk], [%after, %loop]",
        f"  %most = phi {whole} [%most.before, %chunk], [%most.after, %loop]",
        *(f"  %sum{k} = phi {FLOAT} [zeroinitializer, %chunk], [%added{k}, %loop]" for k in sums),
        *_loop(program, writer, whole, vector_of(magnitudes, bits)),
        f"  %after = add i64 %i, {LANES}",
        "  %more = icmp ult i64 %after, %end",
        "  br i1 %more, label %loop, label %flush",
        "flush:",
        *(f"  %wide{k} = fpext {FLOAT} %added{k} to {DOUBLE}\n"
          f"  %next{k} = fadd {DOUBLE} %total{k}, %wide{k}" for k in sums),
        "  %again = icmp ult i64 %end, %count",
        "  br i1 %again, label %chunk, label %done",
        "done:",
        f"  %not.finite = icmp uge {whole} %most.after, {vector_of(infinite, bits)}",
        f"  %next0 = uitofp {MASK} %not.finite to {DOUBLE}",
        *(f"  %at{k} = getelementptr {DOUBLE}, ptr %sums, i64 {k}\n"
          f"  store {DOUBLE} %next{k}, ptr %at{k}, align 8" for k in (0, *sums)),
        "  ret void",
        "}",
        *DECLARATIONS,
    ])  # fmt: skip


def _loop(program: Program, writer: StepLines, whole: str, magnitude: str) -> list[str]:
    """Return what is done with one vector of elements.

    Args:
        program: That makes them.
        writer: Of its steps.
        whole: Vectors of the results' bits.
        magnitude: Which of these are no sign.
    """
    writer.values()
    stored, _ = writer.narrow(writer.value(program.result), program.output)
    place = writer.place("%output", program.output)
    writer.lines.append(f"  store {STORED[program.output]} {stored}, ptr {place}, align 1")
    # no magnitude has greater bits than an infinity, but for NaN
    bits = writer.new(f"bitcast {STORED[program.output]} {stored} to {whole}")
    bits = writer.new(f"and {whole} {bits}, {magnitude}")
    more = writer.new(f"icmp ugt {whole} {bits}, %most")
    writer.new(f"select {MASK} {more}, {whole} {bits}, {whole} %most", "%most.after")
    for k, value in enumerate(map(writer.value, program.measured), 1):
        square = writer.new(f"fmul {FLOAT} {value}, {value}")
        writer.lines.append(f"  %added{k} = fadd {FLOAT} %sum{k}, {square}")
    return writer.lines
