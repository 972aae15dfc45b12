"""Fetch: one file of a pinned commit, resumed over kills, checked against the lock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

from shardmerge.base.errors import UserError
from shardmerge.base.identities import LockedFile
from shardmerge.base.text import human_bytes, human_time
from shardmerge.sources.hub import cache, client
from shardmerge.sources.hub.content import wanted_digest
from shardmerge.sources.hub.partfile import PartFile
from shardmerge.sources.hub.progress import Meter

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FetchRecord:
    """How a file came.

    Args:
        repo: Repository.
        commit: 40-hex commit.
        name: Path in it.
        size: Bytes.
        identity: The content's hash, as ``LockedFile.identity``.
        how: ``downloaded``, ``cloned``, ``linked`` or ``copied`` (from the Hugging Face cache),
            or ``present``.
        resumed_from: Bytes that an earlier run had left.
        downloaded: Bytes that came over the network now.
        seconds: Time it took.
    """

    repo: str
    commit: str
    name: str
    size: int
    identity: str
    how: str
    resumed_from: int
    downloaded: int
    seconds: float


class _WrongContent(Exception):
    """The server sends something else than the lock names."""


def fetch(
    repo: str,
    commit: str,
    name: str,
    locked: LockedFile,
    target: Path,
    *,
    retries: int = 8,
    cache_use: cache.CacheUse = "link",
    progress: client.Say | None = None,
) -> FetchRecord:
    """Bring one file of a commit to its place, whole and with the locked content, or not at all.

    Args:
        repo: Repository on the Hub.
        commit: 40-hex commit.
        name: Path in the repository.
        locked: Size and sha256 (or git blob id).
        target: Where it goes. What has come so far is kept beside it as
            ``NAME.HASH.part``, and a later call goes on from there.
        retries: Failures in a row, without a byte gained, after which it gives up.
        cache_use: What to do with a file that the Hugging Face cache holds.
        progress: Receives lines for the log.

    Returns:
        How it came.

    Raises:
        UserError: If it cannot be had, with what to do; the part file stays.
    """
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"{commit!r} is not a 40-hex commit", repo)
    target = Path(target)
    meter = Meter(name, locked.size, progress)
    wanted = wanted_digest(locked, f"{repo}/{name}")
    with PartFile(target, locked, meter.say) as part:
        resumed_from = part.size
        if part.is_done():
            part.discard()
            how = "present"
        else:
            how = _from_cache(repo, commit, name, wanted, part, cache_use, meter)
        if how is None:
            _download(_Download(repo, commit, name, part, meter, retries))
            how = "downloaded"
    said = f"{human_bytes(locked.size)} in {human_time(meter.seconds)}, {locked.identity[:23]}..."
    meter.say(f"{how}, {said}")
    return FetchRecord(
        repo=repo,
        commit=commit,
        name=name,
        size=locked.size,
        identity=locked.identity,
        how=how,
        resumed_from=resumed_from if how == "downloaded" else 0,
        downloaded=meter.moved,
        seconds=round(meter.seconds, 3),
    )


def _from_cache(
    repo: str,
    commit: str,
    name: str,
    wanted: str,
    part: PartFile,
    use: cache.CacheUse,
    meter: Meter,
) -> str | None:
    blob = None if use == "off" else cache.find(repo, commit, name, wanted, part.locked.size)
    if blob is None:
        return None
    try:
        how = cache.take_blob(blob, part, use)
    except OSError as error:
        meter.say(f"the Hugging Face cache's copy cannot be read ({error.strerror})")
        return None
    if how is None:
        meter.say("the Hugging Face cache's copy is damaged; downloading it instead")
    return how


@dataclass
class _Download:
    repo: str
    commit: str
    name: str
    part: PartFile
    meter: Meter
    retries: int

    @property
    def where(self) -> str:
        return f"{self.repo}@{self.commit[:12]}/{self.name}"


def _download(job: _Download) -> None:
    """Stream until the part is whole and right; every failure either waits or ends it."""
    part, patience, wrong = job.part, client.RetryLimits(job.retries), 0
    if part.size:
        job.meter.say(f"going on from {human_bytes(part.size)}")
    while True:
        before = part.size
        try:
            if part.size < part.locked.size:
                _stream(job)
            if part.finish():
                return
            raise _WrongContent("the bytes that came have another hash")
        except _WrongContent as error:
            part.restart()
            wrong += 1
            if wrong == 2:
                raise UserError(
                    f"is not what the lock names, twice: {error}",
                    job.where,
                    "A proxy may have changed it on the way. If the lock was edited, renew it "
                    "with `snakemake lock`.",
                ) from None
            job.meter.say(f"{error}; starting over")
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if part.size and _is_out_of_range(error):
                part.restart()
                continue
            wait = patience.wait(error, gained=part.size > before)
            if patience.is_spent:
                raise _given_up(job, error) from None
            if wait is None:
                raise client.hub_error(error, job.repo, job.commit, job.name) from None
            job.meter.say(f"{client.brief(error)}; trying again in {wait:.1f} s")
            client.pause(wait)
        except client.HUB_ERRORS as error:
            raise client.hub_error(error, job.repo, job.commit, job.name) from None


def _is_out_of_range(error: Exception) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 416


def _given_up(job: _Download, error: Exception) -> UserError:
    told = client.hub_error(error, job.repo, job.commit, job.name)
    kept = f"{human_bytes(job.part.size)} of {human_bytes(job.part.locked.size)}"
    return UserError(
        f"gave up after {job.retries + 1} attempts in a row without a byte: it {told.message}",
        job.where,
        f"{kept} are kept; run again to go on from there. {told.hint or ''}".strip(),
    )


def _stream(job: _Download) -> None:
    """Append what the server sends from where the part ends.

    Plain HTTP on the ``resolve`` address, which the Hub serves for files in its chunked (xet)
    storage too. The client's own download functions would keep partial files of their own.
    """
    part, size = job.part, job.part.locked.size
    url = hf_hub_url(job.repo, job.name, revision=job.commit, endpoint=client.endpoint())
    fields = {**client.headers(), "Accept-Encoding": "identity"}
    if part.size:
        fields["Range"] = f"bytes={part.size}-"
    session = get_session()
    with session.stream("GET", url, headers=fields, timeout=client.timeout()) as response:
        hf_raise_for_status(response)
        _check_extent(response, part, size)
        for chunk in response.iter_bytes():
            if part.size + len(chunk) > size:
                raise _WrongContent(f"the server sends more than its {size} bytes")
            part.append(chunk)
            job.meter.add(len(chunk), part.size)
    if part.size < size:
        raise httpx2.RemoteProtocolError("the server closed the connection early")


def _check_extent(response: httpx2.Response, part: PartFile, size: int) -> None:
    """Make sure that what follows belongs at the end of the part, of a file of the right size."""
    if response.status_code == 206:
        found = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        if not found or int(found[1]) != part.size or found[2] not in (str(size), "*"):
            raise _WrongContent("the server sends another range than was asked for")
        return
    if part.size:
        part.restart()  # the server knows no ranges and begins anew
    encoded = "Content-Encoding" in response.headers
    length = response.headers.get("Content-Length", "")
    if not encoded and length.isdigit() and int(length) != size:
        raise _WrongContent(f"the server has {length} bytes instead of {size}")
