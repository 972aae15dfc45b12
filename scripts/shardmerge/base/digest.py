"""Canonical JSON, and digests of it: what a job's identity is made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: Returns a text as canonical JSON has it.
quoted = json.encoder.encode_basestring_ascii
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_HEX = frozenset("0123456789abcdef")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, shortest floats, no NaN."""
    return _canonical(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def is_hex(value: object, digits: int) -> bool:
    """Return whether a value is a text of so many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and _HEX.issuperset(value)


def is_digest(value: object) -> bool:
    """Return whether a value is a SHA-256 as text."""
    return is_hex(value, 64)
