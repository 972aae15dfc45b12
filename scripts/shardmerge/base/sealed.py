"""Cache files that show when they are damaged: JSON with a digest of its content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from shardmerge.base.errors import UserError

#: What to do about a cache file that is of no use.
AGAIN = "Run snakemake again: it makes the file anew."
_HEAD, _MIDDLE = '{"sha256": "', '", "content": '


def seal(value: Any, name: str) -> str:
    """Return a value as the text of a file; ``unseal`` inverts it.

    Args:
        value: JSON-able data; the order of keys is kept.
        name: What the file is called by, so that it does not pass for another one.
    """
    content = json.dumps(value)
    return f"{_HEAD}{_digest(name, content)}{_MIDDLE}{content}}}"


def unseal(text: str, name: str, where: str) -> Any:
    """Return the value in a text that ``seal`` made.

    Args:
        text: The file's text.
        name: What the file is called by.
        where: What to say in errors.

    Raises:
        UserError: If one character of it is not as it was written, or it is another file.
    """
    start = len(_HEAD) + 64 + len(_MIDDLE)
    content = text[start:-1]
    whole = f"{_HEAD}{_digest(name, content)}{_MIDDLE}{content}}}"
    if text != whole:
        raise UserError("is damaged", where, AGAIN)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise UserError("is damaged", where, AGAIN) from None


def _digest(name: str, content: str) -> str:
    data = f"{name}\n{content}".encode(errors="surrogatepass")
    return hashlib.sha256(data).hexdigest()
