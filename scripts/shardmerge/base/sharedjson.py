"""JSON of large tables in which many keys have one object: its text is made once.

The texts are those that ``json.dumps`` and ``digest.canonical_json`` make.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from shardmerge.base.digest import canonical_json, quoted


def shared_json(value: Any) -> str:
    """Return what ``json.dumps`` does of a value all of whose keys are texts."""
    return _text(value, json.dumps, ", ", ": ", sort=False)


def shared_digest(value: Any) -> str:
    """Return what ``digest.digest`` does, likewise."""
    text = _text(value, canonical_json, ",", ":", sort=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any, write: Callable[[Any], str], comma: str, colon: str, *, sort: bool) -> str:
    if type(value) is list and any(type(one) is dict for one in value):
        return f"[{comma.join([_text(one, write, comma, colon, sort=sort) for one in value])}]"
    if type(value) is not dict:
        return write(value)
    kinds = {id(one): one for one in value.values()}
    texts = {n: colon + _text(one, write, comma, colon, sort=sort) for n, one in kinds.items()}
    items = sorted(value.items()) if sort else value.items()
    return f"{{{comma.join([quoted(key) + texts[id(one)] for key, one in items])}}}"
