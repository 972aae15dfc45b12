"""Transcendental functions in float64 whose bits depend on no processor and no library.

A C library, torch and numpy choose an implementation by the processor, and round a vector's last
elements by another than the rest. Here a function is a fixed sequence of additions, subtractions,
multiplications, divisions and square roots, each rounded by itself as IEEE 754 says, and of
operations on integers. Arguments are reduced by constants in two or three parts (Cody and Waite
1980, "Software Manual for the Elementary Functions"); the polynomials are Chebyshev interpolants
that are within 2**-55 of the functions. Results are within 2 units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_LOG2_E = 1.4426950408889634
#: ln 2 in two parts; the first times any exponent is exact.
_LN_2 = (0.6931471805592082, 7.371002565167799e-13)
#: pi / 2 in three parts; the first two times a number of 20 bits are exact.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_PI = 3.141592653589793
#: Added to a number below 2**51, it leaves its nearest integer in the last bits.
_INTEGER = 1.5 * 2.0**52
_MANTISSA = 52
_BIAS = 1023
#: The bits of the square root of 1/2.
_ROOT_OF_HALF = 0x3FE6A09E667F3BCD
#: Elements that are computed at once, so few that they stay in the cache.
_PIECE = 1 << 15
#: From here on exp is 0, and infinite.
_EXP_RANGE = (-709.09, 710.0)

# Coefficients, the highest power first.
#: (atanh(s) / s - 1) / s**2 in powers of s**2, s**2 < 0.0295.
_ATANH = (
    *(0.07308292712446586, 0.07665855309105168, 0.0909144472783748, 0.11111105565129939),
    *(0.14285714313001635, 0.19999999999949722, 0.3333333333333335),
)
#: (exp(r) - 1 - r) / r**2, |r| < ln(2) / 2.
_EXP = (
    *(2.510038549551032e-08, 2.7620088445409746e-07, 2.7557268459997064e-06),
    *(2.4801521295954376e-05, 0.00019841269863053618, 0.0013888888917213717),
    *(0.008333333333330062, 0.04166666666662413, 0.16666666666666669, 0.5000000000000001),
)
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


def log_(x: torch.Tensor) -> torch.Tensor:
    """Replace positive, finite, normal float64 numbers by their natural logarithms."""
    return _in_pieces(_log, x)


def exp_(x: torch.Tensor) -> torch.Tensor:
    """Replace float64 numbers by their exponentials; those below 2**-1023 are 0."""
    return _in_pieces(_exp, x)


def _in_pieces(function: Callable[..., None], x: torch.Tensor) -> torch.Tensor:
    """Apply a function in place, with room for three pieces more."""
    flat = x.view(-1)
    work = [torch.empty_like(flat[:_PIECE]) for _ in range(3)]
    for piece in flat.split(_PIECE):
        function(piece, *(part[: len(piece)] for part in work))
    return x


def _log(x: torch.Tensor, s: torch.Tensor, series: torch.Tensor, scale: torch.Tensor) -> None:
    bits, exponent = x.view(torch.int64), s.view(torch.int64)
    torch.sub(bits, _ROOT_OF_HALF, out=exponent).bitwise_right_shift_(_MANTISSA)
    scale.copy_(exponent)
    bits -= exponent.bitwise_left_shift_(_MANTISSA)  # x is in [sqrt(1/2), sqrt(2)) now
    torch.sub(x, 1, out=s)
    s /= x.add_(1)
    square = torch.mul(s, s, out=x)
    _polynomial(square, _ATANH, series).mul_(square)
    s += s  # log x = 2 atanh((x - 1) / (x + 1))
    series *= s
    series += torch.mul(scale, _LN_2[1], out=x)
    series += s
    torch.add(series, scale.mul_(_LN_2[0]), out=x)


def _exp(x: torch.Tensor, scale: torch.Tensor, series: torch.Tensor, part: torch.Tensor) -> None:
    torch.mul(x.clamp_(*_EXP_RANGE), _LOG2_E, out=scale)
    scale += _INTEGER
    bits = torch.bitwise_left_shift(scale.view(torch.int64), _MANTISSA, out=part.view(torch.int64))
    bits += _BIAS << _MANTISSA
    scale -= _INTEGER
    x -= torch.mul(scale, _LN_2[0], out=series)
    x -= scale.mul_(_LN_2[1])
    _polynomial(x, _EXP, series).mul_(x).mul_(x)
    series += x
    series += 1
    torch.mul(series, part, out=x)


def sin(x: torch.Tensor) -> torch.Tensor:
    """Return the sines of float64 numbers of magnitude below a million."""
    return _circular(x, 0)


def cos(x: torch.Tensor) -> torch.Tensor:
    """Return the cosines of float64 numbers of magnitude below a million."""
    return _circular(x, 1)


def acos(x: torch.Tensor) -> torch.Tensor:
    """Return the arc cosines of float64 numbers in [-1, 1]."""
    size = x.abs()
    far = size > 0.5
    # acos(x) = 2 asin(sqrt((1 - x) / 2)), which loses nothing near 1
    square = torch.where(far, (1 - size) * 0.5, x * x)
    sine = torch.where(far, square.sqrt(), x)
    angle = sine + sine * (square * _polynomial(square, _ASIN))
    double = angle + angle
    return torch.where(
        far, torch.where(x < 0, _PI - double, double), _HALF_PI[0] - angle + _HALF_PI[1]
    )


def at_number(function: Callable[[torch.Tensor], torch.Tensor], number: float) -> float:
    """Return a function's value at one number."""
    return float(function(torch.tensor(number, dtype=torch.float64)))


def _circular(x: torch.Tensor, quarters: int) -> torch.Tensor:
    """Return sin(x + quarters * pi / 2)."""
    turns = (x * (2 / _PI)).round()
    for part in _HALF_PI:
        x = x - turns * part
    square = x * x
    sine = x + x * (square * _polynomial(square, _SIN))
    cosine = 1 - (square * 0.5 - square * square * _polynomial(square, _COS))
    turns = turns + quarters
    turns = turns - 4 * (turns * 0.25).floor()
    value = torch.where((turns == 1) | (turns == 3), cosine, sine)
    return torch.where(turns >= 2, -value, value)


def _polynomial(
    x: torch.Tensor, coefficients: Sequence[float], out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a polynomial's values by Horner's rule, each step rounded."""
    first, *others = coefficients
    total = torch.mul(x, first, out=out)
    for coefficient in others[:-1]:
        total += coefficient
        total *= x
    total += others[-1]
    return total
