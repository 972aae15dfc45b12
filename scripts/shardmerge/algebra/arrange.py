"""Arrangements of expressions: what is computed element by element commutes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.pieces import Arrangement, by_operand, compose, entire, normal, only

#: What arrangements of are leaves.
_LEAVES = ex.Source | ex.Decoded | ex.Arranged


class MixedPartsError(Exception):
    """The parts of a tensor are made in ways that are no one expression together."""


def arrange(made: Arrangement, part: Mapping[Any, ex.Expression]) -> ex.Expression:
    """Return an arrangement of expressions as one, whose leaves are arranged.

    Args:
        made: The arrangement.
        part: What each of its operands is.

    Raises:
        MixedPartsError: If the operands are not made in one way.
    """
    names = made.operands()
    parts = [part[name] for name in names]

    def again(find: Callable[[ex.Expression], ex.Expression]) -> ex.Expression:
        inner = dict(zip(names, map(find, parts), strict=True))
        return arrange(made, inner)

    if all(isinstance(one, _LEAVES) for one in parts):
        return _leaf(made, dict(zip(names, parts, strict=True)))
    casts = {p.dtype for p in parts if isinstance(p, ex.Cast)}
    if len(casts) == 1 and all(_is_rounded(p, *casts) for p in parts):
        # what has the type already is widened and rounded back, which changes nothing
        return ex.Cast(again(lambda one: one.operand if isinstance(one, ex.Cast) else one), *casts)
    match parts[0]:
        case ex.Delta(_, _, dtype) if all(
            isinstance(p, ex.Delta) and p.dtype == dtype for p in parts
        ):
            return ex.Delta(again(lambda one: one.finetuned), again(lambda one: one.base), dtype)
        case ex.Linear(terms):
            factors = [c for c, _ in terms]
            if all(isinstance(p, ex.Linear) and [c for c, _ in p.terms] == factors for p in parts):
                count = range(len(terms))
                return ex.Linear(
                    tuple((factors[i], again(lambda one, i=i: one.terms[i][1])) for i in count)
                )
        case ex.Zero() if all(isinstance(p, ex.Zero) for p in parts):
            return ex.Zero(made.shape)
        case ex.LowRank() if len(parts) == 1:
            return _low_rank(made, parts[0])
    raise MixedPartsError


def arrange_rows(made: Arrangement, part: Mapping[Any, fold.Row]) -> fold.Row:
    """Return an arrangement of rows of coefficients as one row.

    Args:
        made: The arrangement.
        part: The row of each of its operands.

    Raises:
        MixedPartsError: If they do not have the same coefficients.
    """
    names = made.operands()
    rows = [part[name] for name in names]
    if len({tuple(row.values()) for row in rows}) > 1:
        raise MixedPartsError
    total: list[tuple[float, fold.Row]] = []
    for leaves in zip(*rows, strict=True):
        key = arrange(made, dict(zip(names, leaves, strict=True)))
        total.append((1.0, {key: rows[0][leaves[0]]}))
    return fold.add_rows(total)


def _is_rounded(part: ex.Expression, dtype: str) -> bool:
    return isinstance(part, ex.Cast | _LEAVES) and part.dtype == dtype


def _leaf(made: Arrangement, part: Mapping[Any, ex.Expression]) -> ex.Expression:
    def inner(name: Any) -> Arrangement:
        one = part[name]
        return one.arrangement if isinstance(one, ex.Arranged) else entire(one, one.shape)

    if any(isinstance(one, ex.Arranged) for one in part.values()):
        made = compose(made, inner)
    else:
        made = normal(by_operand(made, part))
    return only(made) or ex.Arranged(made.pieces, made.shape)


def _low_rank(made: Arrangement, product: ex.LowRank) -> ex.LowRank:
    """Return a product of small factors, or its transpose; a slice is one of its factors.

    Raises:
        MixedPartsError: If it is anything else.
    """
    (piece,) = made.pieces if len(made.pieces) == 1 else (None,)
    if piece is None or any(piece.at) or len(piece.axes) != 2 or piece.extents != made.shape:
        raise MixedPartsError
    if sorted(piece.axes) != [0, 1]:
        raise MixedPartsError
    along = (1, 0) if product.transposed else (0, 1)  # the axes of b's rows and a's columns
    b = _cut(product.b, 0, piece.begin[along[0]], piece.sizes[along[0]])
    a = _cut(product.a, 1, piece.begin[along[1]], piece.sizes[along[1]])
    turned = product.transposed != (piece.axes == (1, 0))
    return ex.LowRank(b, a, product.scale, turned, product.dtype)


def _cut(factor: ex.Expression, axis: int, begin: int, length: int) -> ex.Expression:
    if (begin, length) == (0, factor.shape[axis]):
        return factor
    box = entire(0, factor.shape).pieces[0]
    sizes = tuple(length if i == axis else n for i, n in enumerate(factor.shape))
    start = tuple(begin if i == axis else 0 for i in range(len(sizes)))
    piece = type(box)(0, start, sizes, box.axes, box.at)
    return _leaf(Arrangement(sizes, (piece,)), {0: factor})
