"""Numbers of float16 divided by one number: without a division, with its bits."""

from __future__ import annotations

import numpy as np
import pytest

from shardmerge.engine import native
from shardmerge.methods.program import Program, Writer
from shardmerge.methods.symbolic import StepValue

pytestmark = pytest.mark.skipif(not native.is_usable(), reason="no native code here")
ALL = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
DIVISORS = [
    *(3.0, 5.0, 49.0, 1025.0, 2047.0, -2047.0, 65504.0, 1 / 3, 3 * 2.0**-24, 0.25, 0.0, np.inf),
    *np.random.default_rng(3).normal(0, 300, 60),
]


@pytest.mark.parametrize("code", ["F16", "F32"])
def test_all_numbers_of_16_bits(code: str) -> None:
    """Also before they are rounded to 16 bits."""
    divided = 0
    for number in np.array(DIVISORS).astype(np.float16).astype(float):
        writer = Writer(["F16"], narrow=True)
        result = StepValue(writer, 0).over(float(number)).number
        divided += "over" in [name for name, _ in writer.steps]
        if code == "F32" and writer.steps[-1][0] == "round F16":
            result = len(writer.steps) - 1
        program = Program(("F16",), tuple(writer.steps), result, code, ())
        found = np.zeros(len(ALL), np.float16 if code == "F16" else np.float32)
        places = found.ctypes.data, [ALL.ctypes.data]
        native.native(program).run(*places, len(ALL), writer.constants)
        with np.errstate(all="ignore"):
            expected = (ALL.astype(np.float32) / np.float32(number)).astype(found.dtype)
        numbers = ~np.isnan(expected)
        assert np.array_equal(found, expected, equal_nan=True), number
        assert (np.signbit(found) == np.signbit(expected))[numbers].all(), number
    assert divided == 2  # by 0 and by infinity
