"""Native code for steps: one pass over memory for a whole expression, made by LLVM when it is used.

Operations on vectors of a fixed length are written out, so that LLVM only has to choose
instructions: it may neither fuse nor reorder them, and the bits are the same on every processor.
"""

from __future__ import annotations

import ctypes
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from llvmlite import binding

from shardmerge.base.dtypes import DTYPES
from shardmerge.methods.program import WITH_CONSTANT, Program

#: Elements of a vector of the generated code: registers of any processor are a fraction of it.
LANES = 32
#: Elements after which sums of squares go from float32 to float64.
_CHUNK = 1 << 14
#: What an element is in memory, by type code.
_ELEMENT = {"F16": "half", "BF16": "i16", "F32": "float"}
_STORED = {code: f"<{LANES} x {element}>" for code, element in _ELEMENT.items()}
_HALF, _BITS, _FLOAT = _STORED.values()
_DOUBLE = f"<{LANES} x double>"
_INT = f"<{LANES} x i32>"


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
        engine: Keeps the code alive.
    """

    program: Program
    function: Callable[..., None]
    engine: object

    def run(
        self, output: int, leaves: Sequence[int], count: int, constants: ctypes.Array
    ) -> tuple[bool, list[float]]:
        """Compute elements.

        Args:
            output: Address of the first element's place.
            leaves: Address of the first element of each leaf.
            count: Elements, at least one.
            constants: That the program names, float32.

        Returns:
            Whether all results are finite, and the sum of squares of each measured value.
        """
        whole = count // LANES * LANES
        calls = [self._call(output, leaves, whole, constants)] if whole else []
        if rest := count - whole:
            calls.append(self._rest(output, leaves, whole, rest, constants))
        finite, *squares = (math.fsum(chain(*rows)) for rows in zip(*calls, strict=True))
        return finite == 0, squares

    def _rest(
        self, output: int, leaves: Sequence[int], done: int, count: int, constants: ctypes.Array
    ) -> list[list[float]]:
        """Compute the last elements, which fill no vector, in buffers of one."""
        sizes = [DTYPES[code].size for code in self.program.leaves]
        size = DTYPES[self.program.output].size
        buffers = [(ctypes.c_uint8 * (LANES * one))() for one in sizes]
        for buffer, leaf, one in zip(buffers, leaves, sizes, strict=True):
            ctypes.memmove(buffer, leaf + done * one, count * one)
        result = (ctypes.c_uint8 * (LANES * size))()
        addresses = [ctypes.addressof(buffer) for buffer in buffers]
        sums = self._call(ctypes.addressof(result), addresses, LANES, constants)
        ctypes.memmove(output + done * size, result, count * size)
        return sums

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
    _initialise()
    module = binding.parse_assembly(assembly(program))
    module.verify()
    cpu, features = _processor()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=2)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    pointer = ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(None, pointer, pointer, ctypes.c_int64, pointer, pointer)
    return Native(program, kind(engine.get_function_address("merge")), engine)


def _processor() -> tuple[str, str]:
    """Return the processor's name and what it can do besides."""
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


@cache
def _initialise() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


def assembly(program: Program) -> str:
    """Return a program as a function in LLVM's assembly language."""
    writer = _Assembly(program)
    sums = range(1 + len(program.measured))
    return "\n".join([
        "define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %sums) {",
        "entry:",
        *writer.entry(),
        "  br label %chunk",
        "chunk:",
        "  %begin = phi i64 [0, %entry], [%end, %flush]",
        *(f"  %total{k} = phi {_DOUBLE} [zeroinitializer, %entry], [%next{k}, %flush]"
          for k in sums),
        f"  %far = add i64 %begin, {_CHUNK}",
        "  %inside = icmp ult i64 %far, %count",
        "  %end = select i1 %inside, i64 %far, i64 %count",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [%begin, %chunk], [%after, %loop]",
        *(f"  %sum{k} = phi {_FLOAT} [zeroinitializer, %chunk], [%added{k}, %loop]" for k in sums),
        *writer.loop(),
        f"  %after = add i64 %i, {LANES}",
        "  %more = icmp ult i64 %after, %end",
        "  br i1 %more, label %loop, label %flush",
        "flush:",
        *(f"  %wide{k} = fpext {_FLOAT} %added{k} to {_DOUBLE}\n"
          f"  %next{k} = fadd {_DOUBLE} %total{k}, %wide{k}" for k in sums),
        "  %again = icmp ult i64 %end, %count",
        "  br i1 %again, label %chunk, label %done",
        "done:",
        *(f"  %at{k} = getelementptr {_DOUBLE}, ptr %sums, i64 {k}\n"
          f"  store {_DOUBLE} %next{k}, ptr %at{k}, align 8" for k in sums),
        "  ret void",
        "}",
        f"declare {_FLOAT} @llvm.fma.v{LANES}f32({_FLOAT}, {_FLOAT}, {_FLOAT})",
    ])  # fmt: skip


class _Assembly:
    """Lines of a program's function. Values are ``%v0``, ``%v1`` and so on."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lines: list[str] = []
        self._names = 0

    def entry(self) -> list[str]:
        """Load the leaves' addresses and the constants."""
        lines = []
        for k in range(len(self._program.leaves)):
            lines += [
                f"  %leaf{k}.at = getelementptr ptr, ptr %leaves, i64 {k}",
                f"  %leaf{k} = load ptr, ptr %leaf{k}.at",
            ]
        used = {step[1][1] for step in self._program.steps if step[0] in WITH_CONSTANT}
        for k in sorted(used):
            lines += [
                f"  %c{k}.at = getelementptr float, ptr %constants, i64 {k}",
                f"  %c{k}.one = load float, ptr %c{k}.at",
                f"  %c{k}.first = insertelement {_FLOAT} poison, float %c{k}.one, i64 0",
                f"  %c{k} = shufflevector {_FLOAT} %c{k}.first, {_FLOAT} poison, "
                f"{_INT} zeroinitializer",
            ]
        return lines

    def loop(self) -> list[str]:
        """Return what is done with one vector of elements."""
        program = self._program
        for k, code in enumerate(program.leaves):
            stored = self._new(
                f"load {_STORED[code]}, ptr {self._place(f'%leaf{k}', code)}, align 1"
            )
            self._widen(stored, code, f"%v{k}")
        for k, (name, operands) in enumerate(program.steps, len(program.leaves)):
            self._step(name, operands, f"%v{k}")
        stored, wide = self._narrow(f"%v{program.result}", program.output)
        place = self._place("%output", program.output)
        self._lines.append(f"  store {_STORED[program.output]} {stored}, ptr {place}, align 1")
        # 0 times a number is 0; 0 times an infinity or a NaN is a NaN, which stays in the sum
        nothing = self._new(f"fmul {_FLOAT} {wide}, zeroinitializer")
        self._lines.append(f"  %added0 = fadd {_FLOAT} %sum0, {nothing}")
        for k, value in enumerate(program.measured, 1):
            square = self._new(f"fmul {_FLOAT} %v{value}, %v{value}")
            self._lines.append(f"  %added{k} = fadd {_FLOAT} %sum{k}, {square}")
        return self._lines

    def _new(self, text: str, name: str | None = None) -> str:
        self._names += 1
        name = name or f"%t{self._names}"
        self._lines.append(f"  {name} = {text}")
        return name

    def _place(self, base: str, code: str) -> str:
        return self._new(f"getelementptr {_ELEMENT[code]}, ptr {base}, i64 %i")

    def _widen(self, stored: str, code: str, name: str | None = None) -> str:
        """Return float32 of what lies in memory."""
        if code == "F16":
            return self._new(f"fpext {_HALF} {stored} to {_FLOAT}", name)
        if code == "BF16":
            bits = self._new(f"zext {_BITS} {stored} to {_INT}")
            bits = self._new(f"shl {_INT} {bits}, {_splat(16)}")
            return self._new(f"bitcast {_INT} {bits} to {_FLOAT}", name)
        return self._new(f"bitcast {_FLOAT} {stored} to {_FLOAT}", name)

    def _narrow(self, value: str, code: str) -> tuple[str, str]:
        """Return float32 rounded to what lies in memory, and as float32 again."""
        if code == "F32":
            return value, value
        if code == "F16":
            stored = self._new(f"fptrunc {_FLOAT} {value} to {_HALF}")
            return stored, self._widen(stored, code)
        # Half of the last kept bit's value less one, plus that bit, carries where it must. By
        # integers: instructions for bfloat16 take subnormal numbers for 0.
        bits = self._new(f"bitcast {_FLOAT} {value} to {_INT}")
        last = self._new(f"lshr {_INT} {bits}, {_splat(16)}")
        last = self._new(f"and {_INT} {last}, {_splat(1)}")
        added = self._new(f"add {_INT} {bits}, {_splat(0x7FFF)}")
        added = self._new(f"add {_INT} {added}, {last}")
        nan = self._new(f"fcmp uno {_FLOAT} {value}, {value}")
        added = self._new(
            f"select <{LANES} x i1> {nan}, {_INT} {_splat(0x7FC00000)}, {_INT} {added}"
        )
        added = self._new(f"lshr {_INT} {added}, {_splat(16)}")
        stored = self._new(f"trunc {_INT} {added} to {_BITS}")
        return stored, self._widen(stored, code)

    def _step(self, name: str, operands: tuple[int, ...], value: str) -> None:
        kind, _, code = name.partition(" ")
        if kind == "round":
            _, wide = self._narrow(f"%v{operands[0]}", code)
            self._new(f"bitcast {_FLOAT} {wide} to {_FLOAT}", value)
        elif kind == "zero":
            self._new(f"bitcast {_FLOAT} zeroinitializer to {_FLOAT}", value)
        elif kind == "fma":
            factor, constant, other = operands
            self._new(
                f"call {_FLOAT} @llvm.fma.v{LANES}f32({_FLOAT} %v{factor}, {_FLOAT} %c{constant}, "
                f"{_FLOAT} %v{other})",
                value,
            )
        else:
            prefix = "%c" if kind in WITH_CONSTANT else "%v"
            left, right = operands
            self._new(f"{_OPERATIONS[kind]} {_FLOAT} %v{left}, {prefix}{right}", value)


_OPERATIONS = {"sub": "fsub", "add": "fadd", "mul": "fmul", "div": "fdiv", "plus": "fadd"}


def _splat(value: int) -> str:
    return "<" + ", ".join([f"i32 {value}"] * LANES) + ">"
