"""Normal random numbers from uniform ones, by additions, products and roots alone.

A processor rounds these as IEEE 754 says, and its logarithm as it likes: so the bits are the same
everywhere.
"""

from __future__ import annotations

import math

import torch

from shardmerge.methods.kernels.keys import Key
from shardmerge.methods.kernels.rng import uniform

#: Coefficients of numerators and denominators, from the constant on, in the middle, in the tails
#: and far out: algorithm AS 241, Wichura 1988, https://doi.org/10.2307/2347330.
_MIDDLE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
#: Half a step of ``uniform``: no number is 0 or 1.
_HALF_STEP = 2.0**-33


def normal_numbers(
    key: Key, start: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return part of a stream of normal numbers of mean 0 and variance 1; float64 [count].

    Args:
        key: Of the stream (``keys.stream_key``).
        start: Index of the first number in the stream.
        count: How many numbers.
        device: Where they are needed.
    """
    return quantile(uniform(key, start, count, device) + _HALF_STEP)


def quantile(p: torch.Tensor) -> torch.Tensor:
    """Return where the normal distribution reaches probabilities, float64.

    Args:
        p: float64, from 2**-33 to 1 - 2**-33, which keeps results within 6.4.
    """
    q = p - 0.5
    found = q * _ratio(_MIDDLE, 0.180625 - q * q)
    tails = (q.abs() > 0.425).nonzero().squeeze(1)  # one in seven
    p, q = p[tails], q[tails]
    outer = _ratio(_TAIL, torch.sqrt(-_log(torch.minimum(p, 1.0 - p))) - 1.6)
    found[tails] = torch.where(q < 0, -outer, outer)
    return found


def _ratio(
    coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: torch.Tensor
) -> torch.Tensor:
    above, below = (_polynomial(part, x) for part in coefficients)
    return above / below


def _polynomial(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total.mul_(x).add_(c)
    return total


def _log(x: torch.Tensor) -> torch.Tensor:
    """Return natural logarithms by the series of the inverse hyperbolic tangent."""
    mantissa, exponent = torch.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2, mantissa)
    exponent = exponent.double() - low.double()
    s = (mantissa - 1) / (mantissa + 1)
    series = _polynomial(tuple(2.0 / (2 * k + 1) for k in range(11)), s * s)
    return exponent * math.log(2) + s * series
