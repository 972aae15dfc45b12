"""References in the schema of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def written_out(rule: Any, schema: Mapping[str, Any]) -> Any:
    """Return a rule with the rules that it refers to (``$ref``) in their places.

    Args:
        rule: A part of the schema.
        schema: All of it.
    """
    if isinstance(rule, list):
        return [written_out(item, schema) for item in rule]
    if not isinstance(rule, Mapping):
        return rule
    if "$ref" not in rule:
        return {key: written_out(item, schema) for key, item in rule.items()}
    found: Any = schema
    for key in rule["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return written_out(found, schema)
