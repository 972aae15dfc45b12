"""The reference of the configuration, made from its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shardmerge.base import markdown
from shardmerge.base.findings import CHECKS
from shardmerge.recipe.settings import SCHEMA

_MARKERS = {
    name: (f"<!-- {name}: begin (written by tools/docs) -->", f"<!-- {name}: end -->")
    for name in ("keys", "checks", "sweeps")
}


def config_keys() -> list[tuple[str, Mapping[str, Any]]]:
    """Return every key of the configuration, nested ones with dots, with its rule."""
    return list(_keys(json.loads(SCHEMA.read_text(encoding="utf-8"))))


def config_markdown() -> str:
    """Return the table of all keys."""
    rows = []
    for key, rule in config_keys():
        default = "see below" if "properties" in rule else f"`{json.dumps(rule['default'])}`"
        rows.append([f"`{key}`", _type(rule), default, rule["description"]])
    return markdown.table(["Key", "Type", "Default", "Meaning"], rows)


def checks_markdown() -> str:
    """Return the table of all recipe checks."""
    return markdown.table(
        ["Check", "What it tells"], ([f"`{n}`", told] for n, told in CHECKS.items())
    )


def sweeps_markdown() -> str:
    """Return the table of the keys of a sweep, and of the variables of its space."""
    shared = json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    rows = []
    for prefix, table in (("", shared["sweep"]), ("space.NAME.", shared["variable"])):
        for key, rule in table["properties"].items():
            needed = "needed" if key in table.get("required", ()) else "not set"
            default = f"`{json.dumps(rule['default'])}`" if "default" in rule else needed
            rows.append([f"`{prefix}{key}`", _type(rule), default, rule["description"]])
    return markdown.table(["Key", "Type", "Default", "Meaning"], rows)


def with_tables(text: str) -> str:
    """Return a text with the tables between their markers made anew.

    Raises:
        ValueError: If a marker is missing.
    """
    for name, table in (
        ("keys", config_markdown()),
        ("checks", checks_markdown()),
        ("sweeps", sweeps_markdown()),
    ):
        begin, end = _MARKERS[name]
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"a marker of the generated table of {name} is missing")
        text = f"{before}{begin}\n\n{table}\n{end}{after}"
    return text


def _keys(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, rule in schema["properties"].items():
        yield f"{prefix}{name}", rule
        if "properties" in rule:
            yield from _keys(rule, f"{prefix}{name}.")


def _type(rule: Mapping[str, Any]) -> str:
    if "$ref" in rule:
        return "map"
    if "enum" in rule:
        return ", ".join(f"`{value}`" for value in rule["enum"])
    if "const" in rule:
        return f"`{rule['const']}`"
    if "anyOf" in rule:
        return " or ".join(_type(part) for part in rule["anyOf"])
    names = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    return " or ".join(_NAMES[name] for name in names)


_NAMES = {
    "array": "list",
    "object": "map",
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
