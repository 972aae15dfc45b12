"""An output tensor's expression as steps, where it is elementwise and made of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardmerge.algebra import expression as ex
from shardmerge.algebra.calls import group_of
from shardmerge.algebra.leaves import Leaves
from shardmerge.base.numerics import Numerics
from shardmerge.methods.program import TYPES, Program, Unsupported, Writer
from shardmerge.methods.registry import steps_of


def steps_for(
    expression: ex.Expression,
    dtype: str,
    leaves: Leaves,
    numbers: Mapping[ex.Delta, int],
    numerics: Numerics,
) -> Steps | None:
    """Return the steps of an expression, or None if torch must compute it.

    Args:
        expression: What an output tensor is, simplified.
        dtype: Code of the type that it is written in.
        leaves: What it starts from.
        numbers: Of the task vectors that are measured.
        numerics: In which it is computed.
    """
    dtypes = [leaf.dtype for leaf in leaves.files]
    if leaves.held or not {dtype, *dtypes} <= set(TYPES):
        return None
    compiler = _Compiler(
        Writer(list(dtypes)),
        {leaf: value for value, leaf in enumerate(leaves.files)},
        dict(numbers),
        numerics,
    )
    try:
        result = compiler.value(expression)
    except Unsupported:
        return None
    writer = compiler.writer
    program = Program(tuple(dtypes), tuple(writer.steps), result, dtype, tuple(compiler.measured))
    return Steps(program, tuple(writer.constants), tuple(compiler.squares))


@dataclass
class _Compiler:
    writer: Writer
    values: dict[ex.Expression, int]
    numbers: dict[ex.Delta, int]
    numerics: Numerics
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
            case ex.Call(method=method, inputs=inputs):
                if steps := steps_of(method, self.numerics):
                    return steps(group_of(node, [self.value(one) for one in inputs]), writer)
        raise Unsupported

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
        constants: That they name, of float32's values.
        squares: For each task vector that is measured: its number, where in ``program.measured``
            it stands, and where its base does (None if it is read from a file).
    """

    program: Program
    constants: tuple[float, ...]
    squares: tuple[tuple[int, int, int | None], ...]
