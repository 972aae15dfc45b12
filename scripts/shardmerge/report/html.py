"""HTML pages that need nothing from elsewhere, in a light or a dark window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --faint: #57606a; --paper: #ffffff;
  --line: #d0d7de; --thin: #eaeef2; --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --faint: #9198a1; --paper: #0d1117; --line: #3d444d; --thin: #262c36;
    --good: #3fb950; --bad: #e3a008; }
}
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 1.5rem; max-width: 70rem; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; max-width: 60rem; overflow-wrap: anywhere; } p.note { color: var(--faint); }
p.good::before { content: "\\2713\\00a0"; color: var(--good); }
p.bad::before { content: "\\25cb\\00a0"; color: var(--bad); }
table { border-collapse: collapse; } th, td { padding: .25rem .7rem; text-align: left; }
th { border-bottom: 2px solid var(--line); overflow-wrap: anywhere; }
td { border-bottom: 1px solid var(--thin); vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; overflow-wrap: normal; }
td.good { color: var(--good); } td.bad { color: var(--bad); } a { color: inherit; }
td.key { color: var(--faint); white-space: nowrap; }
"""


@dataclass(frozen=True)
class Marked:
    """A cell of a table that is more than its text.

    Args:
        text: Plain.
        kind: ``good`` or ``bad`` for a result.
        file: A file beside the page that the text is a link to, as a relative path.
    """

    text: str
    kind: str = ""
    file: str = ""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        parts: HTML, of the functions below.
    """
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def heading(text: str) -> str:
    """Return a plain text as the heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a plain text as a paragraph.

    Args:
        text: The text.
        kind: ``good`` or ``bad`` for a result, ``note`` for what explains a table.
    """
    return f"<p{f' class={kind!r}' if kind else ''}>{escape(text)}</p>"


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[str | Marked]], numbers: Sequence[int] = ()
) -> str:
    """Return a table of plain texts; without a header the first column holds keys.

    Args:
        header: Of the columns, or nothing.
        rows: Their texts.
        numbers: Columns of numbers.
    """

    def cell(tag: str, i: int, content: str | Marked) -> str:
        made = content if isinstance(content, Marked) else Marked(content)
        kind = "number" if i in numbers else "key" if not header and i == 0 else ""
        kind = f"{kind} {made.kind}".strip()
        text = escape(made.text)
        if made.file:
            text = f'<a href="{escape(quote(made.file))}">{text}</a>'
        return f"<{tag}{f' class={kind!r}' if kind else ''}>{text}</{tag}>"

    lines = ["<table>"]
    if header:
        lines.append(f"<tr>{''.join(cell('th', i, text) for i, text in enumerate(header))}</tr>")
    lines += [f"<tr>{''.join(cell('td', i, t) for i, t in enumerate(row))}</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])
