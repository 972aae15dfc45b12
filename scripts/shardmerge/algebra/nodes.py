"""The kinds of node that an expression has: what each stands for, its shape and its operands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Union

from shardmerge.algebra import rows
from shardmerge.algebra.tensors import Arranged, Decoded, Source, hashed_once, noted


class _Node:
    """What all expressions share."""

    @property
    def size(self) -> int:
        """The steps of an expression, each counted as often as it stands there."""
        return noted(self, "_size", _size)


@hashed_once
@dataclass(frozen=True)
class Delta(_Node):
    """A task vector, ``finetuned - base``, rounded to ``dtype`` by definition.

    Ilharco et al. 2022, "Editing Models with Task Arithmetic", https://arxiv.org/abs/2212.04089.
    """

    finetuned: Expression
    base: Expression
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape


@hashed_once
@dataclass(frozen=True)
class LowRank(_Node):
    """What a LoRA adapter adds to a matrix: ``scale * b @ a``, or its transpose.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
    https://arxiv.org/abs/2106.09685.

    Args:
        b: Tensor of the adapter, [rows, rank].
        a: Tensor of the adapter, [rank, columns].
        scale: The adapter's own factor, such as alpha / rank.
        transposed: Whether the result is [columns, rows].
        dtype: Code of the type that it is computed in, F32 or F64.
        experts: How many matrices there are, one behind the other; of one it is no stack. As peft
            has it, their columns of ``b`` alternate and their rows of ``a`` follow each other.
    """

    b: Source
    a: Source
    scale: float
    transposed: bool
    dtype: str
    experts: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.b.shape[0], self.a.shape[1]
        matrix = (columns, rows) if self.transposed else (rows, columns)
        return matrix if self.experts == 1 else (self.experts, *matrix)

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.experts


@hashed_once
@dataclass(frozen=True)
class Linear(_Node):
    """A sum of coefficient times operand, computed in float32 (float64 if an operand is)."""

    terms: tuple[tuple[float, Expression], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.terms[0][1].shape


@hashed_once
@dataclass(frozen=True)
class Cast(_Node):
    """The operand rounded to ``dtype`` (to nearest, ties to even)."""

    operand: Expression
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operand.shape


@hashed_once
@dataclass(frozen=True)
class Call(_Node):
    """A merge method that is not a sum, applied to operands of one shape.

    Args:
        method: Name in the registry.
        inputs: Operands in the recipe's order, the base model's among them.
        base: Index of the base model among the inputs, or None.
        parameters: Shared parameters, sorted by name.
        per_input: For each per-model parameter (sorted by name), a value for each input
            (None where the method takes none for the base).
        tensor: Name of the output tensor: what a random method's generator is keyed by.
        models: The inputs' names in the recipe, for the same purpose.
        output_shape: Shape of the result.
    """

    method: str
    inputs: tuple[Expression, ...]
    base: int | None
    parameters: tuple[tuple[str, Any], ...] = ()
    per_input: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    tensor: str = ""
    models: tuple[str, ...] = ()
    output_shape: tuple[int, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.output_shape


@hashed_once
@dataclass(frozen=True)
class Rows(_Node):
    """Rows of the operand, gathered: how a model's embeddings follow another tokenizer.

    Args:
        operand: What must be seen whole for them, or a source's tensor: with all else rows
            commute (``take_rows``).
        table: Which of its rows, as ``shardmerge.algebra.rows`` writes them.
    """

    operand: Expression
    table: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (rows.row_count(self.table), *self.operand.shape[1:])

    @property
    def dtype(self) -> str:
        return self.operand.dtype


@hashed_once
@dataclass(frozen=True)
class Choice(_Node):
    """Row by row one of the operands, the mean of several, or zeros.

    A mean starts at 0, adds in the operands' order and divides by their number.

    Args:
        operands: Of one shape; in mergekit numerics of one dtype too.
        table: Which operands make each row, as ``shardmerge.algebra.rows`` writes them.
    """

    operands: tuple[Expression, ...]
    table: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.operands[0].shape

    @property
    def width(self) -> int:
        """Elements of a row of the table: of one index, or of several where rows are split."""
        return math.prod(self.shape) // max(rows.row_count(self.table), 1)


@hashed_once
@dataclass(frozen=True)
class Mean(_Node):
    """The mean of the operand's rows, as one row."""

    operand: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.operand.shape[1:])


@hashed_once
@dataclass(frozen=True)
class RowSums(_Node):
    """Rows that are weighted sums of the operand's rows: embeddings of tokens that it lacks.

    Each sum is made in the order of the operand's rows, every product and sum rounded once.

    Args:
        operand: What has the rows.
        rows: Tensor of a made source, [count, most], I32: which rows make each one, NO_ROW where
            there are fewer.
        weights: The same, F32: their weights.
    """

    operand: Expression
    rows: Source
    weights: Source

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows.shape[0], *self.operand.shape[1:])


@dataclass(frozen=True)
class Zero(_Node):
    """A tensor of zeros: what is left where every coefficient is 0."""

    output_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.output_shape


Expression = Union[
    Source,
    Decoded,
    Arranged,
    Delta,
    LowRank,
    Linear,
    Cast,
    Call,
    Rows,
    Choice,
    Mean,
    RowSums,
    Zero,
]


def _size(expression: Expression) -> int:
    return 1 + sum([operand.size for operand in operands(expression)])


def operands(expression: Expression) -> tuple[Expression, ...]:
    """Return the direct operands of an expression, in order."""
    match expression:
        case Source() | Zero():
            return ()
        case Decoded():
            return tuple([source for _, source in expression.parts])
        case Arranged():
            return tuple(expression.arrangement.operands())
        case Delta():
            return (expression.finetuned, expression.base)
        case LowRank():
            return (expression.b, expression.a)
        case Linear():
            return tuple([operand for _, operand in expression.terms])
        case Cast() | Rows() | Mean():
            return (expression.operand,)
        case Call():
            return expression.inputs
        case Choice():
            return expression.operands
        case RowSums():
            return (expression.operand, expression.rows, expression.weights)
    raise TypeError(f"not an expression: {expression!r}")
