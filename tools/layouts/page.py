"""The table of supported layouts in the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
_BEGIN, _END = "<!-- layouts -->", "<!-- end of layouts -->"
_RENAMING = "names alone"


def with_table(page: str, layouts: str) -> str:
    """Return the page with the table of what transformers' tables need.

    Args:
        page: The page's text.
        layouts: The table of layouts, as the project keeps it.
    """
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{_table(json.loads(layouts))}\n{_END}{after}"


def _table(data: Mapping[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for kind, table in data["types"].items():
        groups.setdefault(_needs(data["tables"][table]), []).append(kind)
    lines = [
        f"Of transformers {data['transformers']}: {len(data['types'])} model types and classes.",
        "",
        "| what differs | model types and classes |",
        "| --- | --- |",
    ]
    for needs in sorted(groups, key=lambda one: ("not" in one, one != _RENAMING, one)):
        lines.append(f"| {needs} | {_listed(groups[needs])} |")
    return "\n".join(lines) + "\n"


def _needs(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return which operations a table has, those that are not read last."""
    steps = {step for row in rows for step, *_ in row.get("steps", ())}
    lacking = sorted({row["unsupported"] for row in rows if "unsupported" in row})
    shown = ", ".join(f"`{step}`" for step in sorted(steps)) or _RENAMING
    return shown + (f"; not read: {', '.join(f'`{one}`' for one in lacking)}" if lacking else "")


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(kinds, key=str.lower))
