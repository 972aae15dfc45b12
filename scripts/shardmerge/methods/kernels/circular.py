"""Sine, cosine and their inverse in float64, for coefficients: the same bits on every processor.

Made as those of ``elementary``, of single rounded operations, by numpy: no torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shardmerge.methods.elementary import polynomial
from shardmerge.methods.kernels.roots import root

#: pi / 2 in three parts; the first two times a number of 20 bits are exact.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_PI = 3.141592653589793

# Coefficients, the highest power first.
#: (sin(r) / r - 1) / r**2 in powers of r**2, |r| < pi / 4.
_SIN = (
    *(1.5918101230274097e-10, -2.5051131455427946e-08, 2.755731610068303e-06),
    *(-0.0001984126983675497, 0.008333333333330946, -0.16666666666666666),
)
#: (cos(r) - 1 + r**2 / 2) / r**4 in powers of r**2, |r| < pi / 4.
_COS = (
    *(-1.138261486855631e-11, 2.0876146024689747e-09, -2.7557317270560326e-07),
    *(2.4801587298763433e-05, -0.0013888888888887395, 0.041666666666666664),
)
#: (asin(x) / x - 1) / x**2 in powers of x**2, |x| <= 1/2.
_ASIN = (
    *(0.028758057197452214, -0.014852182118059061, 0.0174010640810671, 0.005457440499071871),
    *(0.010322829371692996, 0.011479175171049523, 0.013971213196475337, 0.01735239270634625),
    *(0.02237217294274726, 0.030381944138516817, 0.04464285714635561, 0.07499999999998433),
    0.16666666666666669,
)


def sin(x: np.ndarray) -> np.ndarray:
    """Return the sines of float64 numbers of magnitude below a million."""
    return _circular(x, 0)


def cos(x: np.ndarray) -> np.ndarray:
    """Return the cosines of float64 numbers of magnitude below a million."""
    return _circular(x, 1)


def acos(x: np.ndarray) -> np.ndarray:
    """Return the arc cosines of float64 numbers in [-1, 1]."""
    size = np.abs(x)
    far = size > 0.5
    # acos(x) = 2 asin(sqrt((1 - x) / 2)), which loses nothing near 1
    square = np.where(far, (1 - size) * 0.5, x * x)
    sine = np.where(far, root(square), x)
    angle = sine + sine * (square * polynomial(square, _ASIN))
    double = angle + angle
    return np.where(far, np.where(x < 0, _PI - double, double), _HALF_PI[0] - angle + _HALF_PI[1])


def at_number(function: Callable[[np.ndarray], np.ndarray], number: float) -> float:
    """Return a function's value at one number."""
    return float(function(np.float64(number)))


def cos_and_sin(number: float) -> tuple[float, float]:
    """Return the cosine and the sine of one number, as ``cos`` and ``sin`` do."""
    cosine, sine = _circular(np.float64(number), np.array([1, 0])).tolist()
    return cosine, sine


def _circular(x: np.ndarray, quarters: int | np.ndarray) -> np.ndarray:
    """Return sin(x + quarters * pi / 2)."""
    turns = np.rint(x * (2 / _PI))
    for part in _HALF_PI:
        x = x - turns * part
    square = x * x
    sine = x + x * (square * polynomial(square, _SIN))
    cosine = 1 - (square * 0.5 - square * square * polynomial(square, _COS))
    turns = turns + quarters
    turns = turns - 4 * np.floor(turns * 0.25)
    value = np.where((turns == 1) | (turns == 3), cosine, sine)
    return np.where(turns >= 2, -value, value)
