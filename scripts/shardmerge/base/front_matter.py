"""Cards with front matter: the block of YAML at their beginning, which the Hub reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from shardmerge.base.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

#: What ends the block, as the Hub's library finds it. Its own `ModelCard` takes a fifth of a second
#: to import, with all that talks to the Hub.
_END = re.compile(r"(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")


def card_text(data: ModelCardData, body: str, what: str) -> str:
    """Return the text of a card.

    Args:
        data: Its front matter.
        body: Markdown below it.
        what: What the card is of, for people.

    Raises:
        UserError: If the front matter, read again, is not what was put into it.
    """
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    if _read(text, type(data)) != data.to_dict():
        raise UserError("the card's front matter cannot be written", what)
    return text


def _read(text: str, kind: type[ModelCardData]) -> dict:
    block = _END.split(text.removeprefix("---\n"), maxsplit=1)[0]
    return kind(**yaml.safe_load(block)).to_dict()
