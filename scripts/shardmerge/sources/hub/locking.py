"""Lock from the Hub: one metadata call, one range request per weight file, and nothing more."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import get_session, hf_raise_for_status

from shardmerge.base.digest import is_hex
from shardmerge.base.errors import UserError
from shardmerge.base.filenames import is_commit, is_repo
from shardmerge.base.identities import LockedFile
from shardmerge.base.safetensors import Header, header_length, parse_header
from shardmerge.sources.hub import client
from shardmerge.sources.hub.content import new_hasher, wanted_digest

#: Most headers are shorter, so that one request is enough.
_FIRST_BYTES = 128 * 1024
#: File, first byte, the one behind the last.
Span = tuple[str, int, int]
_LONGEST_TEXT = 64_000_000
_AT_ONCE = 8


def latest_commit(repo: str, revision: str | None) -> str:
    """Return the 40-hex commit that a branch, tag or commit is at now.

    Raises:
        UserError: If the Hub does not tell.
    """
    return _model_info(repo, revision, files=False, progress=None).sha


def commit_of(repo: str, revision: str | None, *, progress: client.Say | None = None) -> Commit:
    """Return the commit that a branch, tag or commit is at now, with the files that it has.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
        progress: Receives a line now and then.

    Raises:
        UserError: If it cannot be had.
    """
    info = _model_info(repo, revision, files=True, progress=progress)
    return Commit(repo, revision, info.sha, progress, info.siblings or ())


def base_model(
    repo: str, revision: str | None, *, progress: client.Say | None = None
) -> str | None:
    """Return the one repository that a model's card says it was made from, or None.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
        progress: Receives a line now and then.

    Raises:
        UserError: If the Hub does not tell.
    """
    card = _model_info(repo, revision, files=False, progress=progress).card_data
    base = getattr(card, "base_model", None)
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    return base if is_repo(base) else None


def _model_info(
    repo: str, revision: str | None, *, files: bool, progress: client.Say | None
) -> ModelInfo:
    def ask() -> ModelInfo:
        return client.api().model_info(
            repo, revision=revision, files_metadata=files, timeout=client.timeout()
        )

    try:
        info = client.retrying(ask, repo, progress=progress)
    except client.HUB_ERRORS as error:
        raise client.hub_error(error, repo, revision) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"got an answer from {client.address()} that is not a Hub's ({client.brief(error)})",
            repo,
            "Does a proxy or a login page stand between?",
        ) from None
    if not is_commit(info.sha):
        raise UserError("has no commit that the Hub would tell", repo)
    return info


class Commit:
    """One commit of a repository: its files, and what a lock needs of them.

    Args:
        repo: ``owner/name``.
        revision: As asked for, for messages.
        commit: 40 hexadecimal digits.
        progress: Receives a line now and then.
        siblings: What the Hub tells of its files; none to read what is locked.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None,
        commit: str,
        progress: client.Say | None = None,
        siblings: Iterable[RepoSibling] = (),
    ) -> None:
        self._repo, self._revision, self.commit = repo, revision, commit
        self._where = f"{repo}@{revision}" if revision else repo
        self._progress = progress
        self._siblings = {
            sibling.rfilename: sibling for sibling in siblings if _is_name(sibling.rfilename)
        }

    @property
    def names(self) -> Collection[str]:
        """Names of its files."""
        return self._siblings

    def identity(self, name: str) -> LockedFile:
        """Return the size and hash that the Hub tells of a file."""
        sibling = self._siblings[name]
        if sibling.lfs and _is_size(sibling.lfs.size) and is_hex(sibling.lfs.sha256, 64):
            return LockedFile(sibling.lfs.size, sha256=sibling.lfs.sha256)
        if sibling.lfs or not _is_size(sibling.size) or not is_hex(sibling.blob_id, 40):
            raise UserError(f"has a file {name!r} of unknown size or hash", self._where)
        return LockedFile(sibling.size, git_oid=sibling.blob_id)

    def content(self, name: str, locked: LockedFile) -> bytes:
        """Return a small file, whole and with the content that was locked."""
        where = f"{self._where}/{name}"
        if locked.size > _LONGEST_TEXT:
            raise UserError(f"has {locked.size} bytes, more than any real one", where)
        data = self._read(name, 0, locked.size)
        hasher = new_hasher(locked)
        hasher.update(data)
        if hasher.hexdigest() != wanted_digest(locked, where):
            raise UserError("came from the Hub with another content than its hash says", where)
        return data

    def spans(self, spans: Sequence[Span]) -> list[bytes]:
        """Return ranges of files' bytes, in order."""
        pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
        try:
            return list(pool.map(lambda span: self._read(*span), spans))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def headers(self, names: Collection[str]) -> Mapping[str, Header]:
        """Return the headers of safetensors files, read at once."""
        done, counting = 0, threading.Lock()

        def read(name: str) -> Header:
            nonlocal done
            header = self._read_header(name)
            with counting:
                done += 1
                if self._progress and (done == len(names) or done % 10 == 0):
                    self._progress(f"{self._where}: {done} of {len(names)} headers")
            return header

        pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
        try:
            return dict(zip(names, pool.map(read, names), strict=True))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_header(self, name: str) -> Header:
        size = self.identity(name).size
        where = f"{self._where}/{name}"
        raw = self._read(name, 0, min(_FIRST_BYTES, size))
        end = 8 + header_length(raw[:8], size, where)
        if end > len(raw):
            raw += self._read(name, len(raw), end)
        return parse_header(raw[:end], size, where)

    def _read(self, name: str, begin: int, end: int) -> bytes:
        """Return the bytes [begin, end) of a file, and take no more from the network."""
        if begin >= end:
            return b""
        try:
            return client.retrying(
                lambda: _read_range(self._url(name), begin, end),
                f"{self._where}/{name}",
                progress=self._progress,
            )
        except client.HUB_ERRORS as error:
            raise client.hub_error(error, self._repo, self._revision, name) from None

    def _url(self, name: str) -> str:
        return hf_hub_url(self._repo, name, revision=self.commit, endpoint=client.endpoint())


def _is_name(value: object) -> bool:
    """Whether it is a text that can be written; which names files may have is told later."""
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _read_range(url: str, begin: int, end: int) -> bytes:
    fields = client.headers() | {
        "Accept-Encoding": "identity",
        "Range": f"bytes={begin}-{end - 1}",
    }
    session: httpx2.Client = get_session()
    with session.stream("GET", url, headers=fields, timeout=client.timeout()) as response:
        hf_raise_for_status(response)
        skip = begin if response.status_code == 200 else 0  # the server knows no ranges
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= skip + end - begin:
                return bytes(data[skip : skip + end - begin])
    raise httpx2.RemoteProtocolError("the server closed the connection early")
