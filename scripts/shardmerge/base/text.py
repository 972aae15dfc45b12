"""Numbers, names and ranges as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shardmerge.base.errors import UserError, shortened

_SIZES = {"": 1} | {f"{u}B": 1000**k for k, u in enumerate("KMGT", 1)}
#: Bytes that files are counted in have 63 bits.
_LARGEST = 1 << 63
_SIZES |= {f"{u}IB": 1024**k for k, u in enumerate("KMGT", 1)}

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human_bytes(count: float) -> str:
    """Return a number of bytes in decimal units with three digits, such as ``138 GB``."""
    value = float(count)
    for unit in _UNITS:
        # What would round to 1000 belongs to the next unit.
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    if unit == "B" or abs(value) >= 99.95:
        return f"{value:.0f} {unit}"
    return f"{value:.1f} {unit}" if abs(value) >= 9.995 else f"{value:.2f} {unit}"


def human_seconds(seconds: float) -> str:
    """Return a duration, such as ``0.04 s``, ``12 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """Return a coefficient with three significant digits."""
    return f"{value:.3g}"


def plural(count: int, word: str) -> str:
    """Return a count with its noun: ``1 shard``, ``15 shards``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as ranges: ``0-7, 9, 72-79``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def parse_size(value: str | float | None) -> int | None:
    """Return a size such as ``5GB`` or ``500MiB`` in bytes.

    Raises:
        UserError: If it is not a size.
    """
    if value is None:
        return None
    if isinstance(value, int | float):
        return _bounded(value, value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)", value.strip(), re.IGNORECASE)
    unit = (
        (match[2].upper() if match[2].upper().endswith("B") else match[2].upper() + "B")
        if (match and match[2])
        else ""
    )
    if not match or (unit not in _SIZES and unit != "B"):
        raise UserError(
            f"{shortened(value)} is not a size", hint="Write for example `5GB` or `500MiB`."
        )
    return _bounded(float(match[1]) * _SIZES.get(unit, 1), value)


def _bounded(size: float, value: str | float) -> int:
    if not 1 <= size < _LARGEST:
        raise UserError(
            f"{shortened(value)} is larger than any disk", hint="Write for example `5GB`."
        )
    return int(size)


def human_time(seconds: float) -> str:
    """Return a time span in its two largest units: ``1 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
