"""Hooks of mkdocs: pages that lie outside docs/, and links as they are right on the site.

The Markdown is written for the repository, where README.md, config/README.md and others are pages
too. Here each gets a place on the site, and relative links follow.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_REPO = Path(__file__).resolve().parents[2]
#: Pages outside docs/, by their place in the repository, with their place on the site.
OUTSIDE = {
    "README.md": "index.md",
    "config/README.md": "config.md",
    "resources/demo/README.md": "demo.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
#: First page of the section that lists itself.
_HOWTOS = "develop/index.md"
_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """List all pages of docs/develop behind its first one."""
    pages = sorted(p.name for p in (_REPO / "docs" / "develop").glob("*.md"))
    section = next(
        entries for part in config.nav for entries in part.values() if _HOWTOS in entries
    )
    section += [f"develop/{name}" for name in pages if f"develop/{name}" != _HOWTOS]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    for source, place in OUTSIDE.items():
        text = (_REPO / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page with its links as they are right on the site."""
    return with_links(markdown, page.file.src_uri)


def with_links(markdown: str, place: str) -> str:
    """Return a page's text with links between pages of the site, and none to other files.

    Args:
        markdown: The text as it is in the repository.
        place: Where the page lies on the site.
    """
    outside = {site: source for source, site in OUTSIDE.items()}
    source = outside.get(place, f"docs/{place}")

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if found in OUTSIDE:
            there = OUTSIDE[found]
        elif found.startswith("docs/"):
            there = found.removeprefix("docs/")
        else:  # code and data of the repository are not on the site
            return text
        relative = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{mark}[{text}]({relative}{hash_}{anchor})"

    return _LINK.sub(link, markdown)
