"""The Hub's client: endpoint, token, retries, and what went wrong as one sentence."""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

import shardmerge
from shardmerge.base.claims import Say
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.urls import without_secrets
from shardmerge.sources.hub.ambient import TIMEOUT, seconds

T = TypeVar("T")

#: What a call to the Hub may raise that ``hub_error`` turns into a sentence.
HUB_ERRORS = (
    HfHubHTTPError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    OfflineModeIsEnabled,
    HFValidationError,
)
#: Waiting may help: the server was too slow, is busy, or (5xx) is out of order.
_TRANSIENT_STATUS = frozenset({408, 425, 429, *range(500, 600)} - {501, 505, 511})
#: How a storage server refuses a link whose signature has grown old.
_REFUSED_LINK = frozenset({400, 401, 403})
_LONGEST_WAIT = 900.0
_LOGIN = "run `hf auth login` or set HF_TOKEN"


def endpoint() -> str:
    """Return the address of the Hub in use: HF_ENDPOINT as it is now, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def address() -> str:
    """Return the endpoint as it may be printed: HF_ENDPOINT may hold a user and a password."""
    return without_secrets(endpoint())


def timeout() -> float:
    """Return the seconds without an answer after which a request is given up."""
    return seconds(TIMEOUT) or constants.HF_HUB_DOWNLOAD_TIMEOUT


def headers() -> dict[str, str]:
    """Return the headers of a request; the token is looked up here and kept nowhere."""
    return build_hf_headers(library_name="shardmerge", library_version=shardmerge.__version__)


def api() -> HfApi:
    """Return the client's API for the endpoint in use."""
    return HfApi(
        endpoint=endpoint(),
        library_name="shardmerge",
        library_version=shardmerge.__version__,
    )


def mask(text: str) -> str:
    """Return a text without tokens, and addresses in it without passwords and signatures."""
    with contextlib.suppress(Exception):
        if token := get_token():
            text = text.replace(token, "***")
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "***", text)
    text = re.sub(r"(?i)\b(bearer)\s+[^\s'\"]+", r"\1 ***", text)
    return without_secrets(text)


class _Masked(logging.Filter):
    """Keeps secrets out of what the client library logs, which names addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), None
        return True


for _handler in logging.getLogger("huggingface_hub").handlers:
    _handler.addFilter(_Masked())


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    return isinstance(error, httpx2.TransportError) and not isinstance(
        error, (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
    )


def is_refused_link(error: Exception) -> bool:
    """Whether a storage server that a redirect led to refuses the link: a fresh one may do."""
    if not isinstance(error, HfHubHTTPError):
        return False
    elsewhere = error.response.url.host != httpx2.URL(endpoint()).host
    return elsewhere and error.response.status_code in _REFUSED_LINK


class RetryLimits:
    """Which failures of one request are worth another attempt.

    Args:
        most: Failures in a row that are borne.
    """

    def __init__(self, most: int) -> None:
        self._most, self._failures, self._refused = most, 0, 0

    def wait(self, error: Exception, gained: bool = False) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there is to be none.

        Args:
            error: What failed now.
            gained: Whether the attempt brought something, so that counting begins anew.
        """
        if gained:
            self._failures = self._refused = 0
        if is_refused_link(error):
            self._refused += 1
            if self._refused > 1:
                return None
        elif not is_transient(error):
            return None
        self._failures += not gained
        return delay(error, max(0, self._failures - 1)) if self._failures <= self._most else None

    @property
    def is_spent(self) -> bool:
        """Whether there have been more failures in a row than are borne."""
        return self._failures > self._most


def delay(error: Exception, attempt: int) -> float:
    """Return the seconds to wait before the next attempt.

    Args:
        error: What failed; its ``Retry-After`` or ``RateLimit`` header counts.
        attempt: How many attempts in a row have failed before this one.
    """
    response = getattr(error, "response", None)
    asked = _seconds_asked(response.headers) if response is not None else None
    if asked is not None:
        return min(asked, _LONGEST_WAIT)
    return min(60.0, 0.5 * 2**attempt) * random.uniform(0.8, 1.2)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def brief(error: Exception) -> str:
    """Return an error in a few words, without secrets."""
    if isinstance(error, HfHubHTTPError):
        return f"HTTP {error.response.status_code}"
    text = " ".join(mask(str(error)).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def retrying(
    call: Callable[[], T],
    what: str,
    *,
    attempts: int = 5,
    progress: Say | None = None,
) -> T:
    """Return what a call returns, repeated with back-off where that may help.

    Args:
        call: The request.
        what: Its name in progress lines.
        attempts: How often it is tried in all.
        progress: Receives a line before every wait.

    Raises:
        Exception: The last error of the call.
    """
    patience = RetryLimits(attempts - 1)
    while True:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            wait = patience.wait(error)
            if wait is None:
                raise
            if progress:
                progress(f"{what}: {brief(error)}; trying again in {wait:.1f} s")
            pause(wait)


def hub_error(
    error: Exception, repo: str, revision: str | None = None, name: str | None = None
) -> UserError:
    """Return a failure of the Hub as a sentence that says what to do.

    Args:
        error: One of ``HUB_ERRORS``.
        repo: Repository that was asked for.
        revision: Revision that was asked for, or None.
        name: File that was asked for, or None.
    """
    where = f"{repo}@{revision}" if revision else repo
    if name and not isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        where = f"{where}/{name}"
    known = get_token() is not None
    match error:
        case OfflineModeIsEnabled():
            message = "is not asked for on the Hub, since HF_HUB_OFFLINE is set"
            hint = "Unset HF_HUB_OFFLINE, or run this step where there is a network."
        case HFValidationError():
            message, hint = "is not the name of a repository on the Hub", "Write `owner/name`."
        case GatedRepoError():  # before RepositoryNotFoundError, of which it is a kind
            message = "is gated, and " + (
                "the token in use has not been given access" if known else "no token is set"
            )
            hint = f"Visit {address()}/{repo}, accept its terms" + (
                "." if known else f", then {_LOGIN}."
            )
        case DisabledRepoError():
            message, hint = "has been disabled on the Hub", f"See {address()}/{repo}."
        case RevisionNotFoundError():
            message, hint = f"has no revision {revision!r}", _near_revision(repo, revision)
        case RepositoryNotFoundError():
            message = "is not on the Hub, or is private and " + (
                "the token in use cannot see it" if known else "no token is set"
            )
            hint = f"Look at {address()}/{repo}" + (
                "; is it another account's?" if known else f"; if it is private, {_LOGIN}."
            )
        case RemoteEntryNotFoundError():
            message, hint = "is not there (HTTP 404)", f"Look at {address()}/{repo}."
        case HfHubHTTPError():
            message, hint = _explain_status(error, known)
        case _:
            message = f"cannot be asked for: the Hub at {address()} does not answer"
            hint = f"({brief(error)}) Is there a network on this machine, and a proxy to set?"
    return UserError(message, where, hint)


def _explain_status(error: HfHubHTTPError, known: bool) -> tuple[str, str]:
    status = error.response.status_code
    if is_refused_link(error):
        host = error.response.url.host
        message = f"is refused by the storage server {host} (HTTP {status}), a fresh link too"
        return message, "Is this machine's clock right? Does a proxy or firewall stand between?"
    if status == 401:
        message = "is refused: the Hub does not accept the token" if known else "needs a token"
        return message, f"{_LOGIN[0].upper()}{_LOGIN[1:]}; {address()}/settings/tokens has yours."
    if status == 403:
        said = f" ({mask(error.server_message)})" if error.server_message else ""
        return f"is refused: the token has not the right to do this{said}", (
            f"See the token's permissions at {address()}/settings/tokens."
        )
    if status == 429:
        return "is refused for now: too many requests (HTTP 429)", "Wait some minutes; run again."
    said = f": {mask(error.server_message)}" if error.server_message else ""
    return f"cannot be asked for: the Hub answers HTTP {status}{said}", "Try again later."


def _near_revision(repo: str, revision: str | None) -> str | None:
    with contextlib.suppress(*HUB_ERRORS):
        refs = api().list_repo_refs(repo)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return did_you_mean(revision or "main", names)
    return None


def _seconds_asked(fields: httpx2.Headers) -> float | None:
    value = fields.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    # https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ as the Hub sends it
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", fields.get("RateLimit", ""))
    return float(limit[1]) if limit else None
