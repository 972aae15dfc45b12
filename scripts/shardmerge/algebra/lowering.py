"""An output tensor's expression as steps, where it is elementwise and made of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.leaves import Leaves, block_leaves, in_passes
from shardmerge.base.numerics import Numerics
from shardmerge.methods.passes import Elements, ElementValue, Map
from shardmerge.methods.program import (
    TYPES,
    Program,
    Reducing,
    ReducingOf,
    Reduction,
    Unsupported,
    Writer,
)
from shardmerge.methods.registry import steps_of
from shardmerge.methods.symbolic import Given, SymbolicElements

#: Returns what a call does to elements, once it is known.
Maps = Callable[[ex.Call], Map]


def steps_for(
    expression: ex.Expression,
    dtype: str,
    leaves: Leaves,
    numbers: Mapping[ex.Delta, int],
    numerics: Numerics,
    maps: Maps | None = None,
) -> Steps | None:
    """Return the steps of an expression, or None if torch must compute it.

    Args:
        expression: What an output tensor is, simplified.
        dtype: Code of the type that it is written in.
        leaves: What it starts from.
        numbers: Of the task vectors that are measured.
        numerics: In which it is computed.
        maps: What each call that is computed in passes does to elements, once its reductions are
            known; without it the steps only show that there are some.
    """
    dtypes = tuple(leaf.dtype for leaf in leaves.files)
    if leaves.held or not {dtype, *dtypes} <= set(TYPES):
        return None
    compiler = _compiler(leaves, numerics, numbers, maps)
    try:
        result = compiler.value(expression)
    except Unsupported:
        return None
    writer, measured = compiler.writer, tuple(compiler.measured)
    own = tuple(writer.loads), tuple(writer.tables)
    program = Program(dtypes, tuple(writer.steps), result, dtype, measured, *own)
    return Steps(program, compiler.given, tuple(compiler.squares))


def is_native(call: ex.Call, stored: Collection[ex.Delta], numerics: Numerics) -> bool:
    """Whether native code makes a call's passes and elements, where there is native code."""
    leaves = block_leaves(call, stored, numerics)
    inner = in_passes(call, numerics)
    return inner and steps_for(call, "F32", leaves, {}, numerics) is not None


def reduction_for(
    call: ex.Call,
    function: Callable[[Elements], Sequence[ElementValue]],
    kind: Reducing | ReducingOf,
    leaves: Leaves,
    numerics: Numerics,
    maps: Maps,
) -> tuple[Reduction, Given]:
    """Return what a call's pass reduces, as steps, and what they need besides.

    Args:
        call: The call.
        function: Returns what is reduced.
        kind: How, perhaps by the codes of their types.
        leaves: What its inputs start from.
        numerics: In which it is computed.
        maps: Of calls among its inputs.
    """
    compiler = _compiler(leaves, numerics, {}, maps)
    codes = tuple(leaf.dtype for leaf in leaves.files)
    return _reduction(codes, function, kind, compiler.elements(call))


def reduction_of(
    codes: Sequence[str],
    shape: tuple[int, ...],
    function: Callable[[Elements], Sequence[ElementValue]],
    kind: Reducing,
) -> tuple[Reduction, Given]:
    """Return what a pass over tensors as they are stored reduces, as ``reduction_for``.

    Args:
        codes: Of the types of the tensors.
        shape: Of each.
        function, kind: Likewise.
    """
    writer = Writer(list(codes))
    x = SymbolicElements(writer, range(len(codes)), shape, Given(writer.constants))
    return _reduction(tuple(codes), function, kind, x)


def program_of(
    codes: Sequence[str],
    shape: tuple[int, ...],
    function: Map,
    output: str | None = None,
    *,
    narrow: bool = True,
) -> tuple[Program, Given] | None:
    """Return what makes a tensor's elements of others', as steps.

    Args:
        codes: Of the types of the other tensors.
        shape: Of each.
        function: Returns an element.
        output: Code of the type that it is written in; None for the one that it has.
        narrow: What is made of values is rounded to their type, as torch does.

    Returns:
        The steps and what they need besides; None if torch must make them.
    """
    if not set(codes) <= set(TYPES):
        return None
    writer = Writer(list(codes), narrow=narrow)
    x = SymbolicElements(writer, range(len(codes)), shape, Given(writer.constants))
    try:
        result = function(x)
    except Unsupported:
        return None
    if (output := output or result.dtype) not in TYPES:
        return None
    own = tuple(writer.loads), tuple(writer.tables)
    program = Program(tuple(codes), tuple(writer.steps), result.number, output, (), *own)
    return program, x.given


def _reduction(
    codes: tuple[str, ...],
    function: Callable[[Elements], Sequence[ElementValue]],
    kind: Reducing | ReducingOf,
    x: SymbolicElements,
) -> tuple[Reduction, Given]:
    made, writer = function(x), x.writer
    values = tuple(value.number for value in made)
    kinds = [value.dtype for value in made]
    found = kind(kinds) if callable(kind) else kind
    ways, kind = (found, "whole") if isinstance(found, tuple) else ((), found)
    code = "F32" if kind == "sums" and "F64" not in kinds else "F64"
    loads, tables = tuple(writer.loads), tuple(writer.tables)
    return Reduction(
        codes, tuple(writer.steps), loads, kind, values, tables, code, ways=ways
    ), x.given


def _compiler(
    leaves: Leaves, numerics: Numerics, numbers: Mapping[ex.Delta, int], maps: Maps | None
) -> _Compiler:
    values = {leaf: value for value, leaf in enumerate(leaves.files)}
    writer = Writer([leaf.dtype for leaf in leaves.files], narrow=not numerics.rounds_once)
    return _Compiler(writer, values, dict(numbers), numerics, maps, Given(writer.constants))


@dataclass
class _Compiler:
    writer: Writer
    values: dict[ex.Expression, int]
    numbers: dict[ex.Delta, int]
    numerics: Numerics
    maps: Maps | None
    given: Given
    measured: list[int] = field(default_factory=list)
    squares: list[tuple[int, int, int | None]] = field(default_factory=list)

    def value(self, node: ex.Expression) -> int:
        """Return the value of an expression; equal parts are computed once."""
        if node in self.values:
            if node in self.numbers and self.numerics.folds:  # a task vector that is read
                self._measure(self.numbers.pop(node), self.values[node])
            return self.values[node]
        self.values[node] = value = self._compute(node)
        return value

    def _compute(self, node: ex.Expression) -> int:
        writer = self.writer
        match node:
            case ex.Delta(finetuned, base, dtype):
                left, right = self.value(finetuned), self.value(base)
                value = writer.round(writer.step("sub", left, right), dtype)
                if node in self.numbers:
                    self._measure(self.numbers.pop(node), value, right)
                return value
            case ex.Linear(terms):
                first, *others = (self._scaled(*term) for term in terms)
                for other in others:
                    first = writer.step("add", first, other)
                return first
            case ex.Cast(operand, dtype):
                return writer.round(self.value(operand), dtype)
            case ex.Zero():
                return writer.step("zero")
            case ex.Call() if in_passes(node, self.numerics):
                elements = self.elements(node)
                return self.maps(node)(elements).number if self.maps else writer.step("zero")
            case ex.Call(method=method, inputs=inputs):
                if steps := steps_of(method, self.numerics):
                    return steps(group_of(node, [self.value(one) for one in inputs]), writer)
        raise Unsupported

    def elements(self, call: ex.Call) -> SymbolicElements:
        """Return the elements of a call's inputs."""
        inputs = [self.value(one) for one in call.inputs]
        return SymbolicElements(self.writer, inputs, call.inputs[0].shape, self.given)

    def _scaled(self, coefficient: float, operand: ex.Expression) -> int:
        value = self.value(operand)
        if coefficient == 1.0:
            return value
        return self.writer.step("mul", value, self.writer.constant(coefficient))

    def _measure(self, number: int, *values: int) -> None:
        first = len(self.measured)
        self.measured += values
        self.squares.append((number, first, first + 1 if len(values) > 1 else None))


@dataclass(frozen=True)
class Steps:
    """An output tensor's program.

    Args:
        program: Its steps.
        given: What they need besides the elements of files.
        squares: For each task vector that is measured: its number, where in ``program.measured``
            it stands, and where its base does (None if it is read from a file).
    """

    program: Program
    given: Given
    squares: tuple[tuple[int, int, int | None], ...]

    @property
    def constants(self) -> tuple[float, ...]:
        """The constants that the steps name, of the first element."""
        return tuple(self.given.constants)
