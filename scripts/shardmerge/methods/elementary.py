"""Exponential and logarithm in float64 whose bits depend on no processor and no library.

A C library, torch and numpy choose an implementation by the processor, and round a vector's last
elements by another than the rest. Here a function is a fixed sequence of additions, subtractions,
multiplications and divisions, each rounded by itself as IEEE 754 says, and of operations on a
number's exponent. Arguments are reduced by constants in two parts (Cody and Waite 1980, "Software
Manual for the Elementary Functions"); the polynomials are Chebyshev interpolants that are within
2**-55 of the functions. Results are within 2 units in the last place. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from shardmerge.methods.passes import RAISED, RAISED_SINGLE, Elements, ElementValue

_LOG2_E = 1.4426950408889634
#: ln 2 in two parts; the first times any exponent is exact.
_LN_2 = (0.6931471805592082, 7.371002565167799e-13)
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
# Of float32: numbers that it has.
#: 2**f, |f| <= 1/2, within 2**-23.
_TWO_TO = (
    *(0.0013390863314270973, 0.009676031768321991, 0.055503569543361664),
    *(0.2402210682630539, 0.6931471824645996, 1.0000001192092896),
)
#: (exp(-r) - 1 + r) / r**2, |r| < ln(2) / 2, within 2**-22.
_EXCESS = (
    *(0.0013926182873547077, -0.008363178931176662, 0.041666556149721146),
    *(-0.16666576266288757, 0.5),
)
_LOG2_E_SINGLE, _LN_2_SINGLE = 1.4426950216293335, 0.6931471824645996


def log(x: Elements, value: ElementValue) -> ElementValue:
    """Return the natural logarithms of positive, finite, normal float64 numbers."""
    exponent, mantissa = x.exponent(value), x.mantissa(value)
    s = (mantissa - 1.0) / (mantissa + 1.0)  # log x = 2 atanh((x - 1) / (x + 1))
    square = s * s
    twice = s + s
    series = polynomial(square, _ATANH) * square * twice
    return exponent * _LN_2[1] + series + twice + exponent * _LN_2[0]


def exp(x: Elements, value: ElementValue, *, inside: bool = False) -> ElementValue:
    """Return the exponentials of float64 numbers; those below 2**-1023 are 0.

    Args:
        x: Elements.
        value: The numbers.
        inside: They are known to be between -709 and 709, or NaN: the same bits in less time.
    """
    value = value if inside else value.clamp(*_EXP_RANGE)
    raised = value * _LOG2_E + RAISED
    scale = raised - RAISED
    rest = value - scale * _LN_2[0] - scale * _LN_2[1]
    series = polynomial(rest, _EXP) * rest * rest + rest + 1.0
    return series * x.power_of_two(raised)


def rest_of_log(value: ElementValue) -> ElementValue:
    """Return x - log(1 + x), at least as many bits of it as x has, for x from -1/4 to 1/3.

    Args:
        value: Numbers, in float64.
    """
    s = value / (value + 2.0)  # log(1 + x) = 2 atanh(s), and 2 s = x - x**2 / (x + 2)
    square = s * s
    return value * s - polynomial(square, _ATANH) * square * (s + s)


def exp_single(x: Elements, value: ElementValue) -> ElementValue:
    """Return the exponentials of float32 numbers from -87 to 88, or NaN, within 2**-21 of them.

    That is so up to 4. Beyond it the number's own last bit counts for more: the bound is
    (2 + |x|) * 2**-23.

    Args:
        x: Elements.
        value: The numbers.
    """
    scaled = value * _LOG2_E_SINGLE
    raised = scaled + RAISED_SINGLE
    return polynomial(scaled - (raised - RAISED_SINGLE), _TWO_TO) * x.power_of_two(raised)


def falling(x: Elements, value: ElementValue) -> tuple[ElementValue, ElementValue]:
    """Return exp(-x), and exp(-x) - 1 + x, of float32 numbers from -87 to 87, or NaN.

    The second is never below 0, and is right within 2**-19 however near to 0 the numbers are.

    Args:
        x: Elements.
        value: The numbers.
    """
    raised = value * -_LOG2_E_SINGLE + RAISED_SINGLE
    power = x.power_of_two(raised)
    rest = value + (raised - RAISED_SINGLE) * _LN_2_SINGLE
    scaled = power * rest
    curved = polynomial(rest, _EXCESS) * rest * scaled
    # 0 where the power is 1
    straight = (power - 1.0) + (value - scaled)
    return curved + (power - scaled), curved + straight


def polynomial(x: ElementValue, coefficients: Sequence[float]) -> ElementValue:
    """Return a polynomial's values by Horner's rule, each step rounded.

    Args:
        x: Numbers, in float64; arrays of numpy too.
        coefficients: The highest power first.
    """
    first, *others = coefficients
    total = x * first
    for coefficient in others[:-1]:
        total = (total + coefficient) * x
    return total + others[-1]
