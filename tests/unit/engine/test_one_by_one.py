"""Squares that native code adds to a number many at a time: as one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shardmerge.engine import native
from shardmerge.engine.reductions import native_reduction
from shardmerge.methods.program import Reduction

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")
COUNT = 1 << 15
Draw = Callable[[np.random.Generator], np.ndarray]
VALUES: dict[str, Draw] = {
    "weights": lambda random: random.normal(0, 0.02, COUNT),
    "differences of weights": lambda random: np.round(random.normal(0, 8, COUNT)) / 512,
    "powers of 2": lambda random: 2.0 ** random.integers(-12, 2, COUNT),
    "ones": lambda _: np.ones(COUNT),
    "zeros": lambda _: np.zeros(COUNT),
    "the first zeros": lambda random: random.normal(0, 1, COUNT) * (np.arange(COUNT) > 5000),
    "few": lambda random: random.normal(0, 1, COUNT) * (random.random(COUNT) < 0.01),
    "large": lambda random: random.normal(0, 3000, COUNT),
    "subnormal": lambda random: random.normal(0, 1e-7, COUNT),
    "of all sizes": lambda random: random.normal(0, 10.0 ** random.integers(-7, 4, COUNT)),
    # one square reaches a power of 2, the next adds what is odd in smaller units
    "up to a power of 2": lambda _: np.isin(np.arange(COUNT), [700, 2100]) * 1.414
    + np.isin(np.arange(COUNT), [701, 2200]) * 1.14,
    "an infinity": lambda _: np.where(np.arange(COUNT) == 20_000, np.inf, 1.0),
    "not a number": lambda _: np.where(np.arange(COUNT) == 20_000, np.nan, 1.0),
}  # fmt: skip


def added(values: np.ndarray, start: float) -> np.float32:
    squares = np.square(values.astype(np.float32))
    return np.add.accumulate(np.concatenate([[np.float32(start)], squares]))[-1]


@pytest.mark.parametrize("start", [0.0, 1.7, 8191.0, 16_777_214.0, 1.1e9])
@pytest.mark.parametrize("name", VALUES)
def test_bits_of_adding_in_turn(name: str, start: float) -> None:
    random = np.random.default_rng(7)
    pair = [VALUES[name](random).astype(np.float16), VALUES["weights"](random).astype(np.float16)]
    sums = np.zeros((4, 2, 1), np.float32)
    sums[0] = start
    each = 3 * COUNT // 8  # the last of three rows is shorter
    code = native_reduction(Reduction(("F16", "F16"), (), (), "numbers", (0, 1)))
    places = [one.ctypes.data for one in pair]
    code.add_squares(sums, np.array([each, 1]), places, COUNT, [])
    for number, upto in enumerate((each, 2 * each, COUNT), 1):
        expected = [added(values[:upto], start) for values in pair]
        assert np.array_equal(sums[number, :, 0], np.array(expected), equal_nan=True)
