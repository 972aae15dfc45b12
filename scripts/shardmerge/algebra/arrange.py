"""Arrangements of expressions: what is computed element by element commutes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shardmerge.algebra import expression as ex
from shardmerge.algebra import fold
from shardmerge.algebra.pieces import (
    Arrangement,
    Patch,
    by_operand,
    compose,
    entire,
    normal,
    only,
    with_value,
)

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
    if len(parts) > 1 and any(map(_is_adapted, parts)):
        return _arrange_adapted(made, dict(zip(names, parts, strict=True)))
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
        case ex.LowRank() if len(parts) == len(made.pieces) == 1:
            return _placed(made, made.pieces[0], parts[0])
    raise MixedPartsError


def _arrange_adapted(made: Arrangement, part: Mapping[Any, ex.Expression]) -> ex.Expression:
    """Return an arrangement of sums, some of which have products that adapters add.

    Raises:
        MixedPartsError: If their other terms are not made in one way.
    """
    plain, products = {}, {}
    for name, one in part.items():
        terms = one.terms if isinstance(one, ex.Linear) else ((1.0, one),)
        added = [e for c, e in terms if isinstance(e, ex.LowRank) and c == 1]
        rest = tuple((c, e) for c, e in terms if e not in added)
        if not rest:
            raise MixedPartsError
        plain[name] = rest[0][1] if len(rest) == 1 and rest[0][0] == 1 else ex.Linear(rest)
        products[name] = added
    terms = [(1.0, arrange(made, plain))]
    for piece in made.pieces:
        terms += [(1.0, _placed(made, piece, product)) for product in products[piece.operand]]
    return ex.Linear(tuple(terms))


def arrange_rows(made: Arrangement, part: Mapping[Any, fold.Row]) -> fold.Row:
    """Return an arrangement of rows of coefficients as one row.

    Args:
        made: The arrangement.
        part: The row of each of its operands.

    Raises:
        MixedPartsError: If they do not have the same coefficients, but for what adapters add.
    """
    names = made.operands()
    if len(names) > 1 and any(isinstance(one, ex.LowRank) for row in part.values() for one in row):
        return _arrange_adapted_rows(made, part)
    rows = [part[name] for name in names]
    if len({tuple(row.values()) for row in rows}) > 1:
        raise MixedPartsError
    total: list[tuple[float, fold.Row]] = []
    for leaves in zip(*rows, strict=True):
        key = arrange(made, dict(zip(names, leaves, strict=True)))
        total.append((1.0, {key: rows[0][leaves[0]]}))
    return fold.add_rows(total)


def _arrange_adapted_rows(made: Arrangement, part: Mapping[Any, fold.Row]) -> fold.Row:
    """Return an arrangement of rows, each product of an adapter where its part is."""
    plain = {
        name: {one: value for one, value in row.items() if not isinstance(one, ex.LowRank)}
        for name, row in part.items()
    }
    total = [(1.0, arrange_rows(made, plain))]
    for piece in made.pieces:
        for one, value in part[piece.operand].items():
            if isinstance(one, ex.LowRank):
                total.append((1.0, {_placed(made, piece, one): value}))
    return fold.add_rows(total)


def _is_adapted(part: ex.Expression) -> bool:
    terms = part.terms if isinstance(part, ex.Linear) else ()
    return any(isinstance(one, ex.LowRank) for _, one in terms)


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


def _placed(made: Arrangement, piece: Patch, product: ex.LowRank) -> ex.LowRank:
    """Return what a product adds to an arranged matrix: that of its factors, cut and widened by 0.

    Args:
        made: The matrix.
        piece: Where in it the product's matrix is, or a box of that.
        product: The product.

    Raises:
        MixedPartsError: If it is no matrix.
    """
    if len(made.shape) != 2 or sorted(piece.axes) != [0, 1]:
        raise MixedPartsError
    rows, columns = (1, 0) if product.transposed else (0, 1)  # those of b and of a
    b = _cut(product.b, 0, made, piece, rows)
    a = _cut(product.a, 1, made, piece, columns)
    turned = product.transposed != (piece.axes == (1, 0))
    return ex.LowRank(b, a, product.scale, turned, product.dtype)


def _cut(
    factor: ex.Expression, axis: int, made: Arrangement, piece: Patch, along: int
) -> ex.Expression:
    """Return what of a factor a piece takes along an axis of its operand, 0 beside it."""
    target = piece.axes[along]
    whole = entire(0, factor.shape).pieces[0]
    sizes = with_value(factor.shape, axis, piece.sizes[along])
    begin = with_value(whole.begin, axis, piece.begin[along])
    at = with_value(whole.at, axis, piece.at[target])
    box = replace(whole, begin=begin, sizes=sizes, at=at)
    return _leaf(
        Arrangement(with_value(factor.shape, axis, made.shape[target]), (box,)), {0: factor}
    )
