"""Text of strangers, written so that it stays text in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote


def code(text: str) -> str:
    """Return a name as inline code on one line, whatever characters it has."""
    text = " ".join(text.split())
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if not text or text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """Return lines as a code block whose fence none of them can close."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def link(text: str, url: str) -> str:
    """Return a link; the text is Markdown already."""
    return f"[{text}]({quote(url, safe=':/@')})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Return a table of cells that are Markdown already.

    Args:
        header: A cell for each column.
        rows: The same.
        numbers: Whether all columns but the first are set to the right.
    """
    rules = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    lines = [header, rules, *rows]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in r) + " |\n" for r in lines)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
