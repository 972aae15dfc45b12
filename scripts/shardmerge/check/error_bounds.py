"""Values with a bound on their error: sums and roundings as the engine makes them, in float64.

The bound runs along: an operation whose result r is exact adds nothing, any other at most
``u * |r|`` (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardmerge.algebra import expression as ex
from shardmerge.check.float_formats import FLOAT_FORMATS, half_ulp, round_to


@dataclass(frozen=True)
class Estimate:
    """What elements must be.

    Args:
        value: float64 [elements].
        error: Bound on the distance of what the engine computes before it rounds to the output's
            type; 0 where it must have this very value.
        decides: Whether a method chooses among inputs that are sums themselves, so that at a near
            tie rounding may make it choose differently.
        independent: Whether it was found without the code that the engine computes with.
    """

    value: np.ndarray
    error: np.ndarray
    decides: bool = False
    independent: bool = True


def joined(value: np.ndarray, error: np.ndarray, parts: Sequence[Estimate]) -> Estimate:
    """Return an estimate that was made of others."""
    decides = any(part.decides for part in parts)
    return Estimate(value, error, decides, all(part.independent for part in parts))


def difference(left: Estimate, right: Estimate, code: str) -> Estimate:
    """Return a difference rounded to float32 or float64: of exact values this very value.

    Float64 arithmetic rounded to float32 is float32 arithmetic: Figueroa 1995, "When is double
    rounding innocuous?", https://doi.org/10.1145/221332.221334.
    """
    found = total([(1.0, left), (-1.0, right)], code)
    exact = (left.error == 0) & (right.error == 0)
    value = np.where(exact, round_to(code, found.value), found.value)
    return replace(found, value=value, error=np.where(exact, 0.0, found.error))


def total(terms: list[tuple[float, Estimate]], code: str) -> Estimate:
    """Return a sum in the order of its terms with the running bound of its rounding errors."""
    value, error = None, 0.0
    for coefficient, part in terms:
        product, carried = coefficient * part.value, 0.0
        if part.error.any():
            carried = abs(coefficient) * part.error
        if abs(coefficient) != 1:
            coefficient_error = abs(float(round_to(code, np.array(coefficient))) - coefficient)
            carried = carried + coefficient_error * np.abs(part.value)
            carried = rounded_error(product, carried, code)
        if value is None:
            value, error = product, carried
        else:
            value = value + product
            error = rounded_error(value, error + carried, code)
    if isinstance(error, float):
        error = np.zeros_like(value)
    # What comes from an infinite source must be infinite or NaN itself.
    if not np.isfinite(value).all():
        for _, part in terms:
            error = np.where(np.isfinite(part.value), error, 0.0)
    return joined(value, error, [part for _, part in terms])


def rounded_error(value: np.ndarray, error: np.ndarray | float, code: str) -> np.ndarray:
    """Return the error bound of an operation's result after the operation has rounded it.

    It grows by nothing where the result is exact, and is infinite where it may have overflowed.

    Args:
        value: The result, float64.
        error: Its bound before, of every element or of all.
        code: safetensors code of the type that is rounded to.
    """
    form = FLOAT_FORMATS[code]
    size = np.abs(value)
    size += error
    unit = form.unit + FLOAT_FORMATS["F64"].unit  # the engine's rounding, and the one made here
    grown = unit * size
    grown += error
    grown += form.least
    if code != "F64":
        known = np.equal(error, 0)
        if known.any():
            known = known & (round_to(code, value) == value)
            np.putmask(grown, known, 0.0)
    if not size.max(initial=0.0) < form.overflow:  # NaN is neither less nor greater
        grown[size >= form.overflow] = np.inf
    return grown


def round_estimate(part: Estimate, dtype: str) -> Estimate:
    """Return an estimate of the same values rounded to a type of that code."""
    exact = part.error == 0
    error = part.error + half_ulp(dtype, np.abs(part.value) + part.error)
    value = np.where(exact, round_to(dtype, part.value), part.value)
    return replace(part, value=value, error=np.where(exact, 0.0, error))


def product(node: ex.LowRank, b: np.ndarray, a: np.ndarray, places: np.ndarray) -> Estimate:
    """Return elements of a low-rank product with the bound of the errors of a sum in any order.

    Higham 2002, section 3.1: a sum of n products is within ``n * u`` of the sum of their sizes.

    Args:
        node: The product.
        b, a: Its factors, float64.
        places: Indices of the elements.
    """
    expert, inside = np.divmod(places, b.shape[0] * a.shape[1])
    rows, columns = np.divmod(inside, node.shape[-1])
    if node.transposed:
        rows, columns = columns, rows
    value = error = np.zeros(len(rows))
    for k in range(node.rank):
        left = b[rows, k * node.experts + expert]
        part = node.scale * left * a[expert * node.rank + k, columns]
        value, error = value + part, error + np.abs(part)
    return _with_bound(node, value, error)


def product_rows(node: ex.LowRank, b: np.ndarray, a: np.ndarray, run: tuple[int, int]) -> Estimate:
    """Return the same of a run of whole rows, by matrix products."""
    height, width = node.shape[-2:]
    first, count = (number // width for number in run)
    parts = []
    for expert in range(first // height, -(-(first + count) // height)):
        left, right = b[:, expert :: node.experts], a[expert * node.rank :][: node.rank]
        if node.transposed:
            left, right = right.T, left.T
        rows = slice(max(first - expert * height, 0), first + count - expert * height)
        left = node.scale * left[rows]
        parts.append((left @ right, np.abs(left) @ np.abs(right)))
    value, error = (np.concatenate(one).reshape(-1) for one in zip(*parts, strict=True))
    return _with_bound(node, value, error)


def _with_bound(node: ex.LowRank, value: np.ndarray, error: np.ndarray) -> Estimate:
    """Return products with their bounds, from the sums of the sizes of what they are sums of."""
    form = FLOAT_FORMATS[node.dtype]
    bound = (node.rank + 3) * (form.unit + FLOAT_FORMATS["F64"].unit) * error
    bound += (node.rank + 1) * (1 + abs(node.scale)) * FLOAT_FORMATS[node.dtype].least
    bound = np.where(error >= form.overflow, np.inf, bound)
    return Estimate(value, np.where(np.isfinite(value), bound, 0.0))
