"""Bounds of metrics, such as ``>= 0.95``."""

from __future__ import annotations

import operator
import re

from shardmerge.base.errors import UserError

_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*(\S+)\s*")
_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
#: What counts as broken at the bound itself.
_LEAST = 1e-9


def is_within(bound: str, value: float) -> bool:
    """Return whether a value is within a bound.

    Raises:
        UserError: If the bound has no number.
    """
    sign, limit = _parts(bound)
    return _SIGNS[sign](value, limit)


def distance(bound: str, value: float) -> float:
    """Return how far a value is beyond a bound, 0 or less if it is within it."""
    sign, limit = _parts(bound)
    beyond = limit - value if sign.startswith(">") else value - limit
    return min(beyond, 0.0) if _SIGNS[sign](value, limit) else max(beyond, _LEAST)


def _parts(bound: str) -> tuple[str, float]:
    match = _BOUND.fullmatch(bound)
    assert match is not None  # the configuration's schema is_within it
    try:
        return match[1], float(match[2])
    except ValueError:
        message = f"{match[2]!r} is no number"
        raise UserError(message, "configuration: sweep.constraints") from None
