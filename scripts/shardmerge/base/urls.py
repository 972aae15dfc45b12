"""Addresses as they may be printed and stored: without passwords and signatures."""

from __future__ import annotations

import re

_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"<>]*@")
_QUERY = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s?#'\"<>]+)[?#][^\s'\"<>]+")


def without_secrets(text: str) -> str:
    """Return a text whose addresses have no user, no password and no query.

    The query of a storage server's address is a signature: who has it may read the file.
    """
    return _QUERY.sub(r"\1?***", _USER.sub(r"\1", text))
