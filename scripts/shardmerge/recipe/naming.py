"""What models are called in paths and for people, made of references in one place."""

from __future__ import annotations

import re

from shardmerge.base.digest import digest
from shardmerge.base.pathnames import MOST_NAME_BYTES, too_long


def slug(reference: str) -> str:
    """Return a reference as a folder name of at most 100 bytes; different ones differ in it."""
    name = reference.strip("./").replace("/", "--")
    plain = re.sub(r"[^\w.+@-]+", "-", name)
    long = too_long(plain)
    if plain == name and "--" not in reference and not long:
        return plain
    if long:
        plain = plain.encode()[: MOST_NAME_BYTES - 20].decode(errors="ignore")
    return f"{plain}-{digest(reference)[:6]}"
