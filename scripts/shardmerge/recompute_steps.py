"""What elements of mergekit's sums must be: the steps of native code, done one by one in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardmerge.program import WITH_CONSTANT, Steps
from shardmerge.roundoff import round_to

_OPERATIONS = {
    "sub": np.subtract,
    "add": np.add,
    "mul": np.multiply,
    "div": np.divide,
    "plus": np.add,
}


def value_by_steps(steps: Steps, leaves: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return elements before they are rounded to an output type; numpy rounds every step once.

    Args:
        steps: Of the tensor.
        leaves: float64 [elements] of each leaf, exactly.
        count: Elements.

    Returns:
        float64 [elements], each a float32 number.
    """
    made = [leaf.astype(np.float32) for leaf in leaves]
    constants = np.array(steps.constants, np.float32)
    for name, operands in steps.program.steps:
        kind, _, code = name.partition(" ")
        match kind:
            case "zero":
                value = np.zeros(count, np.float32)
            case "round":
                value = round_to(code, made[operands[0]].astype(np.float64)).astype(np.float32)
            case "fma":
                factor, constant, other = operands
                value = multiplied_and_added(made[factor], constants[constant], made[other])
            case _:
                left, right = operands
                right = (constants if kind in WITH_CONSTANT else made)[right]
                value = _OPERATIONS[kind](made[left], right)
        made.append(value)
    return made[steps.program.result].astype(np.float64)


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
