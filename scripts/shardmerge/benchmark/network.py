"""Whether the Hub can be reached; where not, libraries are told so before they try for minutes."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable

#: Seconds in which the Hub must answer.
_PATIENCE = 5.0
_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


def use_cache_where_offline(say: Callable[[str], None], patience: float = _PATIENCE) -> bool:
    """Let the libraries of the Hub use their cache alone where the Hub does not answer.

    Call it before they are imported, since they read this from the environment then.

    Args:
        say: Is told where this is so.
        patience: Seconds in which the Hub must answer.

    Returns:
        Whether they use their cache alone.
    """
    if any(os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE") for name in _SWITCHES):
        offline = True
    else:
        offline = not _answers(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", patience)
        if offline:
            say("the Hub cannot be reached from here; data sets come from the cache")
    if offline:
        os.environ.update(dict.fromkeys(_SWITCHES, "1"))
    return offline


def _answers(endpoint: str, patience: float) -> bool:
    """Return whether a server answers at all, whatever it says."""
    if not endpoint.startswith(("https://", "http://")):
        return True  # the libraries say what is wrong with it
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=patience):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError as error:
        return isinstance(error, ssl.SSLError)
