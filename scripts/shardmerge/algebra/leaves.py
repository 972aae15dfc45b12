"""What the engine asks of an expression before it computes it. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from shardmerge.algebra import expression as ex
from shardmerge.base.dtypes import combine_dtype
from shardmerge.base.numerics import MERGEKIT, Numerics
from shardmerge.methods.registry import kernel_of, result_dtype

#: What is read from a file: a tensor of a source, rows of one, or a task vector that is stored.
FileLeaf = ex.Source | ex.Rows | ex.Delta
#: What is held whole while it is used: a method's result, a mean of rows, rows of either.
HeldLeaf = ex.Call | ex.Mean | ex.Rows


def simplify(expression: ex.Expression) -> ex.Expression:
    """Return the expression without outer steps that change no value (times 1, cast to itself)."""
    match expression:
        case ex.Linear(((1.0, operand),)):
            return simplify(operand)
        case ex.Cast(operand, dtype):
            inner = simplify(operand)
            if isinstance(inner, ex.Source) and inner.dtype == dtype:
                return inner
    return expression


def combine(expression: ex.Expression) -> str:
    """Return the code of the type that an expression's sums are computed in, F32 or F64."""
    named = [
        part.dtype
        for part in ex.walk(expression)
        if isinstance(part, ex.Source | ex.Delta | ex.LowRank | ex.Cast)
    ]
    return combine_dtype(named)


def stated_dtype(expression: ex.Expression) -> str:
    """Return the code of the dtype that mergekit numerics computes an expression in."""
    match expression:
        case ex.Linear():
            return combine(expression)
        case ex.Call(method=method, inputs=inputs):
            return result_dtype(method, MERGEKIT, stated_dtype(inputs[0]))
        case ex.Rows(operand) | ex.Mean(operand):
            return stated_dtype(operand)
        case ex.Choice(operands):
            return stated_dtype(operands[0])
    return expression.dtype


def is_whole(expression: ex.Expression, numerics: Numerics) -> bool:
    """Whether an expression is a call that must see the whole tensor at once."""
    return isinstance(expression, ex.Call) and not kernel_of(expression.method, numerics)[1]


def leaves(
    expression: ex.Expression, stored: Collection[ex.Delta], numerics: Numerics
) -> tuple[tuple[FileLeaf, ...], tuple[HeldLeaf, ...]]:
    """Return what a blockwise evaluation starts from: what lies in files, what is held whole.

    Args:
        expression: What is evaluated; if it is a whole call itself, that is its only leaf. Products
            of small factors (``low_ranks``) are computed from factors that are held, so no leaves.
        stored: Task vectors that are read and not computed.
        numerics: Decides which calls are elementwise.

    Returns:
        Distinct leaves of either kind, in order of first use.
    """
    files: dict[FileLeaf, None] = {}
    held: dict[HeldLeaf, None] = {}

    def visit(part: ex.Expression) -> None:
        if _in_file(part, stored):
            files[part] = None
        elif isinstance(part, ex.Rows | ex.Mean) or is_whole(part, numerics):
            held[part] = None
        elif not isinstance(part, ex.LowRank):
            for operand in ex.operands(part):
                visit(operand)

    visit(expression)
    return tuple(files), tuple(held)


def _in_file(part: ex.Expression, stored: Collection[ex.Delta]) -> bool:
    if isinstance(part, ex.Rows):
        part = part.operand
    return isinstance(part, ex.Source) or (isinstance(part, ex.Delta) and part in stored)


def low_ranks(expression: ex.Expression) -> tuple[ex.LowRank, ...]:
    """Return the distinct products of small factors in an expression, in order of first use."""
    found = (part for part in ex.walk(expression) if isinstance(part, ex.LowRank))
    return tuple(dict.fromkeys(found))


def is_copied(expression: ex.Expression, dtype: str, stored: Collection[ex.Delta]) -> bool:
    """Whether a simplified expression, written in a dtype, is a tensor of a file as it lies there.

    Rows of one are gathered, which is not a copy.
    """
    plain = isinstance(expression, ex.Source) or expression in stored
    return plain and expression.dtype == dtype


def file_leaves(expression: ex.Expression, stored: Collection[ex.Delta]) -> Iterator[FileLeaf]:
    """Yield all that is read for an expression, what lies under whole calls too."""
    if _in_file(expression, stored):
        yield expression
    else:
        for operand in ex.operands(expression):
            yield from file_leaves(operand, stored)


def direct_deltas(expression: ex.Expression, numerics: Numerics) -> tuple[ex.Delta, ...]:
    """Return the distinct task vectors of an expression that are not under a whole call."""
    found: dict[ex.Delta, None] = {}

    def visit(part: ex.Expression) -> None:
        if isinstance(part, ex.Delta):
            found[part] = None
        if not (isinstance(part, ex.Rows | ex.Mean) or is_whole(part, numerics)):
            for operand in ex.operands(part):
                visit(operand)

    visit(expression)
    return tuple(found)
