"""Steps in float32 that make one element of a tensor: what native code is generated from.

Values of float16, bfloat16 and float32 are held as float32, which has them all; a step that rounds
to a narrower type leaves float32 that the type has too. Each step is one operation of IEEE 754,
rounded to nearest, ties to even, so that the result is the same on every processor. Pure: no torch.
"""

from __future__ import annotations

import math
import os
import platform
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Literal

from shardmerge.base.dtypes import single

#: Elements that are computed at once: those of one row where rows are multiples of them.
LANES = 32
#: Codes of the types that float32 holds.
TYPES = ("F16", "BF16", "F32")
#: Steps whose second operand is a constant.
WITH_CONSTANT = ("mul", "div", "plus", "fma")
#: Steps that are a constant, by its type.
CONSTANTS = {"full F32": "F32", "full F64": "F64", "full U32": "U32"}


#: Terms that torch adds in order, whatever the shape.
FEW = 4


class Unsupported(Exception):
    """What is asked for cannot be said in steps, so that torch must compute it."""


def _hash_once(steps: Program | Reduction) -> int:
    """Return the hash of what may have a hundred steps; it is looked up for every few elements."""
    held = steps.__dict__
    if "hash" not in held:
        held["hash"] = hash(tuple(held[one.name] for one in fields(steps)))
    return held["hash"]


@dataclass(frozen=True)
class Program:
    """Steps without their constants, so that tensors of one recipe share one.

    Args:
        leaves: Code of each leaf's type; values are numbered from here on, leaves first.
        steps: (operation, operands) of each further value: ``sub``, ``add`` (two values), ``fma``
            (value, constant, value: their product and sum rounded once), ``mul``, ``div``, ``plus``
            (value, constant), ``round F16``, ``round BF16`` or ``round F32`` (value), ``zero``;
            ``full F32``, ``full F64``, ``full U32`` (constant), ``load`` (number of a load),
            ``times``, ``over``, ``gt``, ``ge``, ``lt``, ``eq``, ``ne``, ``and`` (two values),
            ``abs``, ``wide`` (to float64), ``single`` (to float32), ``key`` (the bits of a
            magnitude), ``exponent``, ``mantissa`` (of float64), ``power`` (of float64 or float32,
            see ``passes.Elements``), ``select`` (mask, two values), ``at least``, ``at most`` (two
            keys), ``row`` (number of a table, constants: the index of the first element, the
            elements of a row).
        result: The value that is written.
        output: Code of the type that it is written in, rounded once.
        measured: Values of which the sum of squares is wanted.
        loads: Code of the type of each leaf that steps load, after the others; ``BIT`` of masks.
        tables: Code of the type of each table, which has a number for each row, after the loads.
    """

    leaves: tuple[str, ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    result: int
    output: str
    measured: tuple[int, ...]
    loads: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    __hash__ = _hash_once


#: How values are reduced.
Reducing = Literal[
    "sums",
    "maxima",
    "counts",
    "keys",
    "caught",
    "marked",
    "bits",
    "rows",
    "pairs",
    "lanes",
    "numbers",
    "whole",
]
#: Returns it by the codes of the values' types; of ``whole`` how each value is added up.
ReducingOf = Callable[[Sequence[str]], "Reducing | tuple[Reducing, ...]"]
#: Those that are added up in torch's order: sums, by vectors or pairs of them, and norms, by the
#: lanes of a vector or number by number; or ``whole`` tensors of both, at once.
IN_TORCH_ORDER = ("rows", "pairs", "lanes", "numbers", "whole")


@dataclass(frozen=True)
class Reduction:
    """Steps whose values are reduced to few numbers.

    Args:
        leaves, steps, loads, tables: As of a ``Program``.
        kind: ``sums`` of float64 or float32 values, ``maxima`` of float64 values, ``counts`` of
            masks, where ``keys`` lie, those that are ``caught`` in brackets, the same ``marked``
            with where they are and which lie beyond, or their ``bits`` as they are; see also
            ``IN_TORCH_ORDER``.
        values: What is reduced.
        code: Of the type that ``sums`` are made in, which their values have.
        in_row: Whether a call goes through elements of one row, of which tables have one number.
        ways: Of ``whole``, how each value is added up.
    """

    leaves: tuple[str, ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    loads: tuple[str, ...]
    kind: Reducing
    values: tuple[int, ...]
    tables: tuple[str, ...] = ()
    code: str = "F64"
    in_row: bool = False
    ways: tuple[Reducing, ...] = ()

    __hash__ = _hash_once


@dataclass
class Writer:
    """Writes steps; a value is a number.

    Args:
        dtypes: Code of each value's type as the expression states it, leaves first.
        narrow: What is made of values is rounded to their type, as torch does.
    """

    dtypes: list[str]
    narrow: bool = False
    steps: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def step(self, name: str, *operands: int) -> int:
        """Write a step; return its value, a float32."""
        self.steps.append((name, operands))
        self.dtypes.append("F32")
        return len(self.dtypes) - 1

    def made(self, value: int) -> tuple[str, tuple[int, ...]]:
        """Return the step that makes a value; without a name if it is a leaf."""
        step = value - (len(self.dtypes) - len(self.steps))
        return self.steps[step] if step >= 0 else ("", ())

    def constant(self, value: float, dtype: str = "F32") -> int:
        """Return the number of a constant, rounded to a type."""
        self.constants.append(rounded(value, dtype))
        return len(self.constants) - 1

    def full(self, value: float, dtype: str) -> int:
        """Write a constant of float32, float64 or 32 bits as a value."""
        self.constants.append(_single(value) if dtype == "F32" else value)
        number = self.step(f"full {dtype}", len(self.constants) - 1)
        self.dtypes[number] = dtype
        return number

    def load(self, dtype: str) -> int:
        """Write that a further leaf is loaded."""
        self.loads.append(dtype)
        value = self.step("load", len(self.loads) - 1)
        self.dtypes[value] = dtype
        return value

    def row(self, dtype: str, first: int, length: int) -> int:
        """Write that the number of an element's row is taken from a further table.

        Args:
            dtype: Of the numbers.
            first, length: Constants: the index of the first element, and the elements of a row.
        """
        self.tables.append(dtype)
        value = self.step("row", len(self.tables) - 1, first, length)
        self.dtypes[value] = dtype
        return value

    def round(self, value: int, dtype: str) -> int:
        """Round a value to a type."""
        if dtype not in TYPES:
            raise Unsupported
        if self.dtypes[value] == dtype:
            return value
        value = self.step(f"round {dtype}", value)
        self.dtypes[value] = dtype
        return value


def rounded(value: float, dtype: str) -> float:
    """Return a number rounded to float32, and from there to a narrower type.

    Raises:
        Unsupported: If it overflows.
    """
    try:
        value = single(value)
        if dtype == "F16":
            (value,) = struct.unpack("<e", struct.pack("<e", value))
    except OverflowError:
        raise Unsupported from None
    if dtype == "BF16" and math.isfinite(value):
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return value


def nearest(value: float, dtype: str) -> float:
    """Return a number rounded as ``rounded`` does, infinite where it overflows."""
    try:
        return rounded(value, dtype)
    except Unsupported:
        return math.copysign(math.inf, value)


def _single(value: float) -> float:
    """Return a number rounded to float32, infinite beyond it."""
    try:
        return single(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def in_order(writer: Writer, values: Sequence[int]) -> int:
    """Write the sum of values as torch makes it of a few: from +0, in order."""
    total = writer.step("plus", values[0], writer.constant(0.0))
    for value in values[1:]:
        total = writer.step("add", total, value)
    return total


def sum_of(numbers: Sequence[float]) -> float:
    """Return the float32 sum of numbers of that type, in order."""
    total = 0.0
    for number in numbers:
        total = rounded(total + number, "F32")
    return total


def few(numbers: Sequence) -> Sequence:
    """Return numbers that torch adds in order, whatever the shape.

    Raises:
        Unsupported: If there are too many for that.
    """
    if len(numbers) > FEW:
        raise Unsupported
    return numbers


def common_dtype(values: Sequence[int], writer: Writer) -> str:
    """Return the code of the type that all values have.

    Raises:
        Unsupported: If they have several.
    """
    (dtype, *others) = {writer.dtypes[value] for value in values}
    if others:
        raise Unsupported
    return dtype


@cache
def torch_fuses() -> bool:
    """Whether torch's ``addcmul`` rounds once: not on x86 processors without such instructions."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    from llvmlite import binding

    # which makes torch do as on such a processor
    plain = os.environ.get("ATEN_CPU_CAPABILITY") == "default"
    return not plain and bool(binding.get_host_cpu_features().get("fma"))


@cache
def torch_order_is_known() -> bool:
    """Whether long sums of torch's have an order that passes know: on x86 processors."""
    return platform.machine().lower() in ("x86_64", "amd64")
