"""Linear stages compose: rows of coefficients over leaves, folded, pruned, simplified.

A *leaf* is a source tensor, a task vector, what an adapter adds, or the result of a method that is
not linear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from shardmerge.algebra import expression as ex
from shardmerge.base.dtypes import single
from shardmerge.methods.registry import LinearForm

#: A coefficient this small beside the terms that were summed to it is a rounding error of theirs.
_NOTHING = 2.0**-45

#: leaf -> (coefficient, sum of the absolute values that were added up to it)
Row = Mapping[ex.Expression, tuple[float, float]]


def leaf(expression: ex.Expression) -> Row:
    """Return the row of one leaf, taken once."""
    return {expression: (1.0, 1.0)}


def add_rows(parts: Iterable[tuple[float, Row]]) -> Row:
    """Return the sum of coefficient times row; leaves whose coefficients cancel are dropped.

    Raises:
        OverflowError: If one is beyond what a float can hold.
    """
    total: dict[ex.Expression, tuple[float, float]] = {}
    for factor, row in parts:
        if factor == 0:
            continue
        for key, (coefficient, magnitude) in row.items():
            value, size = factor * coefficient, abs(factor) * magnitude
            if key in total:
                have = total[key]
                value, size = have[0] + value, have[1] + size
            total[key] = (value, size)
            if not size < math.inf:
                raise OverflowError("a coefficient is beyond what a float can hold")
    if all(abs(c) > _NOTHING * m for c, m in total.values()):
        return total
    return {k: (c, m) for k, (c, m) in total.items() if abs(c) > _NOTHING * m}


def apply_form(form: LinearForm, rows: list[Row], base: int | None, delta_dtype: str) -> Row:
    """Return a linear method's result over its inputs' rows.

    ``input - base`` becomes a task vector of its own where both are plain tensors; where one is a
    sum itself, the difference is a sum as well.

    Args:
        form: The method's coefficients.
        rows: The inputs, in the order of the form's indices.
        base: Index of the base among them, or None.
        delta_dtype: Code of the type that task vectors are rounded to.
    """
    parts = [(c, rows[i]) for i, c in form.direct.items()]
    for i, c in form.deltas.items():
        finetuned, origin = _plain(rows[i]), _plain(rows[base])
        if finetuned is not None and finetuned == origin:
            continue
        if finetuned is not None and origin is not None:
            parts.append((c, leaf(ex.Delta(finetuned, origin, delta_dtype))))
        else:
            parts += [(c, rows[i]), (-c, rows[base])]
    return _cancel_bases(add_rows(parts))


def to_expression(row: Row, shape: tuple[int, ...]) -> ex.Expression:
    """Return a row as an expression, coefficients rounded to the type it is combined in.

    Plain tensors come first, then task vectors and what adapters add, each in order of first use;
    of them, one of coefficient 1 starts the sum.

    Args:
        row: The row.
        shape: Of the tensor: where nothing is left it is zero everywhere.
    """
    if len(row) == 1:
        ((only, (coefficient, _)),) = row.items()
        if coefficient == 1:
            return only
    wide = any(map(_is_wide, row))
    rounded = [(_round(c, wide), e) for e, (c, _) in row.items()]
    terms = [(c, e) for c, e in rounded if c != 0]
    terms.sort(key=lambda term: (isinstance(term[1], ex.Delta | ex.LowRank), term[0] != 1))
    if not terms:
        return ex.Zero(shape)
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return ex.Linear(tuple(terms))


#: Kinds of leaf whose difference is a task vector.
_PLAIN = ex.Source | ex.Decoded | ex.Arranged | ex.Rows | ex.Choice


def _plain(row: Row) -> _PLAIN | None:
    if len(row) == 1:
        ((key, (coefficient, _)),) = row.items()
        if coefficient == 1 and isinstance(key, _PLAIN):
            return key
    return None


def _cancel_bases(row: Row) -> Row:
    """Write ``base + 1 * (finetuned - base)`` as ``finetuned``, wherever a base cancels so.

    Of several task vectors that could, one whose fine-tuned model stands in the row already is
    taken, else the first.
    """
    while True:
        found = [
            d
            for d, (c, m) in row.items()
            if isinstance(d, ex.Delta)
            and d.base in row
            and abs(row[d.base][0] - c) <= _NOTHING * (m + row[d.base][1])
        ]
        if not found:
            return row
        delta = next((d for d in found if d.finetuned in row), found[0])
        value = row[delta]
        rest = {k: v for k, v in row.items() if k not in (delta, delta.base)}
        row = add_rows([(1.0, rest), (1.0, {delta.finetuned: value})])


def _is_wide(part: ex.Expression) -> bool:
    if isinstance(part, ex.Decoded):
        return any(source.dtype == "F64" for _, source in part.parts)
    return any(source.dtype == "F64" for source in ex.sources(part))


def _round(coefficient: float, wide: bool) -> float:
    return coefficient if wide else single(coefficient)
