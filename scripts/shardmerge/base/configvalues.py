"""Values of a model's config.json, each of the kind that it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from shardmerge.base.errors import UserError, shortened

ValueKind = Literal["object", "number", "text"]
_KINDS = {"object": "an object", "number": "a finite number", "text": "a text"}


def config_value(
    config: Mapping[str, Any], key: str, kind: ValueKind, where: str, default: Any = None
) -> Any:
    """Return a value of a configuration.

    Args:
        config: A parsed config.json, or an object in it.
        key: Of the value.
        kind: What it must be.
        where: The configuration, for messages.
        default: What is returned where it is null or not there.

    Raises:
        UserError: If it is of another kind.
    """
    value = config.get(key)
    if value is None:
        return default
    if not _is(value, kind):
        raise UserError(f"has `{key}: {shortened(value)}`, which is not {_KINDS[kind]}", where)
    return value


def family(config: Mapping[str, Any]) -> str:
    """Return what family of architectures a configuration says that it is of, "" if it does not."""
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else ""


def _is(value: Any, kind: ValueKind) -> bool:
    if kind == "number":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return isinstance(value, Mapping if kind == "object" else str)
