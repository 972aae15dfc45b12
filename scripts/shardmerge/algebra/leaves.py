"""What must be known of an expression before it is computed. Pure: no torch, no files."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from shardmerge.algebra import expression as ex
from shardmerge.algebra import rows
from shardmerge.algebra.calls import group_of
from shardmerge.base.dtypes import bytes_of, combine_dtype
from shardmerge.base.numerics import MERGEKIT, Numerics
from shardmerge.methods.program import FEW, TYPES, torch_order_is_known
from shardmerge.methods.registry import (
    kernel_of,
    passes_choose,
    passes_fit,
    passes_of,
    result_dtype,
    steps_of,
)

#: What is read from files: a tensor of a source, as it is, decoded or arranged, rows of one, or a
#: task vector that is stored.
FileLeaf = ex.Source | ex.Decoded | ex.Arranged | ex.Rows | ex.Delta
_OF_FILES = (ex.Source, ex.Decoded, ex.Arranged)
#: What is held whole while it is used: a method's result, a mean or sums of rows, rows of those.
#: Rows of a result that is computed in passes are not: they are mapped where they are wanted.
HeldLeaf = ex.Call | ex.Mean | ex.RowSums | ex.Rows


@dataclass(frozen=True)
class Leaves:
    """What an evaluation block by block starts from, each distinct, in order of first use.

    Args:
        files: What is read from files.
        held: What is computed first and held whole.
        deltas: Task vectors that are met on the way: those under what is held are not.
    """

    files: tuple[FileLeaf, ...]
    held: tuple[HeldLeaf, ...]
    deltas: tuple[ex.Delta, ...]


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


def sum_dtype(expression: ex.Expression) -> str:
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
            return sum_dtype(expression)
        case ex.Call(method=method, inputs=inputs):
            return result_dtype(method, MERGEKIT, stated_dtype(inputs[0]))
        case ex.Rows(operand) | ex.Mean(operand) | ex.RowSums(operand):
            return stated_dtype(operand)
        case ex.Choice(operands):
            return stated_dtype(operands[0])
    return expression.dtype


def is_stored(part: ex.Expression, stored: Collection[ex.Delta]) -> bool:
    """Whether a part of an expression is a tensor of files: a source's, or a stored task vector.

    Args:
        part: What is asked about.
        stored: Task vectors that lie in files.
    """
    if isinstance(part, ex.Source | ex.Decoded | ex.Arranged):
        return True
    return isinstance(part, ex.Delta) and part in stored


def is_read(part: ex.Expression, stored: Collection[ex.Delta]) -> bool:
    """Whether a part of an expression is read from a file: a tensor of one, or rows of one."""
    return is_stored(part.operand if isinstance(part, ex.Rows) else part, stored)


def is_copied(expression: ex.Expression, dtype: str, stored: Collection[ex.Delta]) -> bool:
    """Whether a simplified expression, written in a dtype, is a tensor of a file as it lies there.

    Rows of one are gathered, what is decoded or arranged is computed, so that these are no copies.
    """
    if isinstance(expression, ex.Decoded | ex.Arranged):
        return False
    return is_stored(expression, stored) and expression.dtype == dtype


def is_whole(expression: ex.Expression, numerics: Numerics) -> bool:
    """Whether an expression is a call whose elements depend on the whole of its inputs."""
    return isinstance(expression, ex.Call) and not kernel_of(expression.method, numerics)[1]


def in_passes(expression: ex.Expression, numerics: Numerics) -> bool:
    """Whether an expression is a call that is computed in passes, so that nothing is held."""
    if not isinstance(expression, ex.Call) or not passes_of(expression.method, numerics):
        return False
    return numerics.rounds_once or _has_mergekit_passes(expression)


def _has_mergekit_passes(call: ex.Call) -> bool:
    """Whether a call's passes have mergekit's bits: of inputs of one narrow type, not many."""
    (dtype, *others) = {stated_dtype(one) for one in call.inputs}
    if others or dtype not in TYPES or not torch_order_is_known():
        return False
    fits = passes_fit(call.method, MERGEKIT)
    return len(call.inputs) - (call.base is not None) <= FEW and (not fits or fits(group_of(call)))


def chooses(call: ex.Call, numerics: Numerics) -> bool:
    """Whether a call's passes choose among all elements of tensors by torch's order."""
    found = passes_choose(call.method, numerics) if in_passes(call, numerics) else None
    return bool(found) and found(group_of(call))


def is_held(expression: ex.Expression, numerics: Numerics) -> bool:
    """Whether an expression is a call that is made from whole tensors and held whole."""
    return is_whole(expression, numerics) and not in_passes(expression, numerics)


def held_whole(part: ex.Expression, numerics: Numerics) -> bool:
    """Whether a part of an expression is made first and held whole, or is rows of what is."""
    if isinstance(part, ex.Rows):
        return held_whole(part.operand, numerics) or not _is_alike_anywhere(part.operand, numerics)
    return isinstance(part, ex.Mean | ex.RowSums) or is_held(part, numerics)


def _is_alike_anywhere(expression: ex.Expression, numerics: Numerics) -> bool:
    """Whether an element has the same bits in whatever block of elements it is computed."""
    if numerics.rounds_once:
        return True
    for part in ex.walk(expression, lambda part: held_whole(part, numerics)):
        if isinstance(part, ex.LowRank):
            return False
        if isinstance(part, ex.Call) and not in_passes(part, numerics):
            narrow = {stated_dtype(one) for one in part.inputs} <= set(TYPES)
            if len(part.inputs) > FEW or not narrow or not steps_of(part.method, numerics):
                return False
    return True


def mean_streams(mean: ex.Mean, numerics: Numerics) -> bool:
    """Whether the rows that a mean is of can pass by: the order of its sums is known."""
    return numerics.own_order or (torch_order_is_known() and stated_dtype(mean) in TYPES)


def calls_in_passes(expression: ex.Expression, numerics: Numerics) -> tuple[ex.Call, ...]:
    """Return the distinct calls that are computed in passes, inner ones first.

    Args:
        expression: What is computed; what is held whole for it is not looked into.
        numerics: In which it is computed.
    """

    def ends(part: ex.Expression) -> bool:
        return held_whole(part, numerics)

    found = [p for p in ex.walk(expression, ends) if not ends(p) and in_passes(p, numerics)]
    return tuple(dict.fromkeys(reversed(found)))


def file_leaves(
    expression: ex.Expression, stored: Collection[ex.Delta] = ()
) -> tuple[FileLeaf, ...]:
    """Return all that is read for an expression, what lies under whole calls too.

    Args:
        expression: What is computed.
        stored: Task vectors that are read, so that what they are made of is not.

    Returns:
        Distinct leaves in order of first use.
    """
    found: dict[FileLeaf, None] = {}
    left = [expression]
    while left:
        part = left.pop()
        if isinstance(part, _OF_FILES) or is_read(part, stored):
            found[part] = None
        else:
            left.extend(reversed(ex.operands(part)))
    return tuple(found)


def block_leaves(
    expression: ex.Expression, stored: Collection[ex.Delta], numerics: Numerics
) -> Leaves:
    """Return what an evaluation of an expression block by block starts from.

    Args:
        expression: What is evaluated; if it is a whole call itself, that is its only leaf. Products
            of small factors (``low_ranks``) are computed from factors that are held, so no leaves.
        stored: Task vectors that are read and not computed.
        numerics: Decides which calls are elementwise.
    """

    def ends(part: ex.Expression) -> bool:
        return isinstance(part, ex.LowRank) or is_read(part, stored) or held_whole(part, numerics)

    files: dict[FileLeaf, None] = {}
    held: dict[HeldLeaf, None] = {}
    deltas: dict[ex.Delta, None] = {}
    for part in ex.walk(expression, lambda part: ends(part) or isinstance(part, ex.Rows)):
        if isinstance(part, ex.Delta):
            deltas[part] = None
        if is_read(part, stored):
            files[part] = None
        elif held_whole(part, numerics):
            held[part] = None
        elif isinstance(part, ex.Rows):
            inner = block_leaves(part.operand, stored, numerics)
            files |= {leaf_rows(leaf, part.table): None for leaf in inner.files}
            held |= {leaf_rows(leaf, part.table): None for leaf in inner.held}
            deltas |= dict.fromkeys(inner.deltas)
    return Leaves(tuple(files), tuple(held), tuple(deltas))


def leaf_rows(leaf: ex.Expression, table: str) -> ex.Rows:
    """Return the leaf that has the rows of another which a table names."""
    if isinstance(leaf, ex.Rows):
        return ex.Rows(leaf.operand, rows.take(leaf.table, table))
    return ex.Rows(leaf, table)


def low_ranks(expression: ex.Expression) -> tuple[ex.LowRank, ...]:
    """Return the distinct products of small factors in an expression, in order of first use."""
    found = (part for part in ex.walk(expression) if isinstance(part, ex.LowRank))
    return tuple(dict.fromkeys(found))


def leaf_sources(leaf: FileLeaf) -> tuple[ex.Source, ...]:
    """Return the tensors of sources that a leaf is read from: none for a stored task vector."""
    if isinstance(leaf, ex.Decoded):
        return tuple([source for _, source in leaf.parts])
    return () if isinstance(leaf, ex.Delta) else ex.sources(leaf)


def bytes_read(leaf: FileLeaf) -> int:
    """Return the bytes that are read for a leaf: of rows only those that are not zeros."""
    if isinstance(leaf, ex.Rows):
        whole = bytes_read(leaf.operand)
        return whole * rows.taken(leaf.table) // max(leaf.operand.shape[0], 1)
    if isinstance(leaf, ex.Arranged):
        boxes = ((piece.operand, math.prod(piece.sizes)) for piece in leaf.pieces)
        return sum(bytes_read(one) * n // max(ex.elements(one), 1) for one, n in boxes)
    if isinstance(leaf, ex.Decoded):
        return sum([bytes_of(part.dtype, part.shape) for _, part in leaf.parts])
    return bytes_of(leaf.dtype, leaf.shape)


def bytes_of_leaves(expression: ex.Expression) -> int:
    """Return the bytes that are read for an expression where no task vector is stored."""
    return sum(map(bytes_read, file_leaves(expression)))
