"""What the environment tells the Hub's client, checked before that is imported and reads it."""

from __future__ import annotations

import os
import re

from shardmerge.base.errors import UserError

TIMEOUT = "HF_HUB_DOWNLOAD_TIMEOUT"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault(TIMEOUT, "60")


def seconds(name: str) -> int | None:
    """Return the time in an environment variable, None where it is not set.

    Raises:
        UserError: If it is none.
    """
    text = os.environ.get(name)
    if text and not re.fullmatch(r"[0-9]{1,6}", text):
        raise UserError("is not a whole number of seconds", f"{name} in the environment")
    return int(text) if text else None


for _name in (TIMEOUT, "HF_HUB_ETAG_TIMEOUT"):
    seconds(_name)
