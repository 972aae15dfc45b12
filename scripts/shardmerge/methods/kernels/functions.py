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
