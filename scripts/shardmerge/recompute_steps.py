"""What elements of mergekit's sums must be: the steps of native code, done one by one in numpy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from shardmerge import expression as ex
from shardmerge.engine.algebra import FileLeaf, leaves, simplify
from shardmerge.engine.steps import steps_for
from shardmerge.program import Steps
from shardmerge.recompute_rows import gathered
from shardmerge.roundoff import decode, round_to
from shardmerge.samples import Runs


def value_by_steps(
    expression: ex.Expression,
    dtype: str,
    stored: Collection[ex.Delta],
    numerics: str,
    read: Callable[[ex.Source | ex.Delta, Runs], np.ndarray],
    runs: Runs,
) -> np.ndarray | None:
    """Return elements before they are rounded to an output type, or None if there are no steps.

    Args:
        expression: What is evaluated.
        dtype: safetensors code of the output.
        stored: Task vectors that are read from files.
        numerics: One of ``spec.NUMERICS``.
        read: Reads elements of a source tensor or a stored task vector.
        runs: Which elements.

    Returns:
        float64 [elements], each a float32 number.
    """
    steps = steps_for(expression, dtype, stored, numerics)
    if steps is None:
        return None
    files, _ = leaves(simplify(expression), stored, numerics)
    values = [_leaf(leaf, read, runs) for leaf in files]
    return _evaluated(steps, values, sum(count for _, count in runs)).astype(np.float64)


def _leaf(leaf: FileLeaf, read: Callable[..., np.ndarray], runs: Runs) -> np.ndarray:
    if not isinstance(leaf, ex.Rows):
        return decode(read(leaf, runs), leaf.dtype).astype(np.float32)
    values = np.zeros(sum(count for _, count in runs), np.float32)
    found = gathered(leaf, runs)
    if found.runs:
        values[found.places] = _leaf(leaf.operand, read, found.runs)[found.chosen]
    return values


def _evaluated(steps: Steps, values: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return the steps' result; numpy rounds every float32 operation once."""
    made = list(values)
    constants = np.array(steps.constants, np.float32)
    for name, operands in steps.program.steps:
        kind, _, code = name.partition(" ")
        match kind:
            case "zero":
                value = np.zeros(count, np.float32)
            case "round":
                value = made[operands[0]]
                if code != "F32":
                    value = round_to(code, value.astype(np.float64)).astype(np.float32)
            case "fma":
                factor, constant, other = operands
                value = multiplied_and_added(made[factor], constants[constant], made[other])
            case "sub" | "add":
                left, right = (made[one] for one in operands)
                value = left - right if kind == "sub" else left + right
            case "mul" | "div" | "plus":
                left, right = made[operands[0]], constants[operands[1]]
                value = left * right if kind == "mul" else left / right
                value = left + right if kind == "plus" else value
            case _:
                raise TypeError(f"unknown step {name!r}")
        made.append(value)
    return made[steps.program.result]


def multiplied_and_added(x: np.ndarray, y: np.float32, z: np.ndarray) -> np.ndarray:
    """Return ``x * y + z`` of float32 numbers, rounded once.

    Float64 has the product exactly. The sum is rounded to odd, so that the second rounding is
    right: Boldo and Melquiond 2008, https://doi.org/10.1109/TC.2007.70819.
    """
    product, other = x.astype(np.float64) * np.float64(y), z.astype(np.float64)
    total = product + other
    part = total - product
    rest = (product - (total - part)) + (other - part)  # Knuth's exact error of the sum
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (rest != 0) & (bits & 1 == 0)
    towards = np.where((rest > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + towards, bits).view(np.float64).astype(np.float32)
