"""Chat templates: those that a recipe may name, and the one that most merged models have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.files import parse_object

_FOLDER = Path(__file__).parent / "templates"
#: Names of the formats that a recipe may write for a template.
CHAT_TEMPLATES = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))
#: File that transformers takes a model's template from, before any other.
TEMPLATE_FILE = "chat_template.jinja"
#: Files that may hold a model's template.
TEMPLATE_FILES = (TEMPLATE_FILE, "chat_template.json", "tokenizer_config.json")


def named_template(text: str) -> str:
    """Return the template that a recipe's text stands for: of that name, or the text itself."""
    if text not in CHAT_TEMPLATES:
        return text
    return (_FOLDER / f"{text}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def own_template(texts: Mapping[str, str], where: str) -> str | None:
    """Return the template of a model, without white space around it, or None.

    Args:
        texts: The model's files among TEMPLATE_FILES.
        where: The model, for messages.

    Raises:
        UserError: If one of them is not JSON.
    """
    found: Any = texts.get(TEMPLATE_FILE)
    for name in TEMPLATE_FILES[1:]:
        if not found and name in texts:
            found = parse_object(texts[name], f"{where}, {name}").get("chat_template")
    if isinstance(found, list):  # several templates, each with a name
        rows = [row for row in found if isinstance(row, dict)]
        found = {str(row.get("name")): row.get("template") for row in rows}
    if isinstance(found, dict):
        found = found.get("default")
    return found.strip() or None if isinstance(found, str) else None


def most_common(templates: Iterable[str | None]) -> str | None:
    """Return the template that most models have, of several the first; None if none has one."""
    counts = Counter(template for template in templates if template)
    return counts.most_common(1)[0][0] if counts else None
