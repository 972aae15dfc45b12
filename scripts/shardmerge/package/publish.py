"""Publish: a verified model folder, and nothing else, as one commit of a repository."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from shardmerge.sources.hub import client  # before huggingface_hub, which it sets up

# isort: split
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import disable_progress_bars, get_session

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes, human_time
from shardmerge.package.index import CARD
from shardmerge.package.uploads import Upload, check_sums, list_uploads

Listing = Callable[[Path], tuple[list[Upload], list[tuple[str, str]]]]
#: Files that go up at the same time over LFS; xet is parallel within a file.
_AT_ONCE = 4


def publish(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str = "Upload merged model",
    dry_run: bool = False,
    progress: client.Say | None = None,
    listing: Listing = list_uploads,
) -> str:
    """Upload a model folder; what an interrupted call has uploaded is not uploaded again.

    All files become visible in one commit, after the last of them is there.

    Args:
        folder: The model, or an export of it.
        repo: ``owner/name``, created if it does not exist.
        private: Whether the repository is to be private.
        revision: Branch, created if it does not exist; None for the default one.
        commit_message: First line of the commit.
        dry_run: Say what would be done, change nothing.
        progress: Receives lines for the log.
        listing: Says what of the folder goes; ``list_export`` for an export.

    Returns:
        The commit's page, or on a dry run the repository's.

    Raises:
        UserError: If the repository is of the other visibility, the folder is not a whole model,
            or the upload failed.
    """
    say = progress or (lambda line: None)
    uploads, left_out = listing(folder)
    try:
        existing = _existing(repo, private)
        _say_plan(say, repo, private, existing, uploads, left_out)
        if dry_run:
            return f"{client.address()}/{repo}"
        if get_token() is None:
            raise UserError(
                "can be published to with a token that may write only, and none is set",
                repo,
                f"Run `hf auth login` or set HF_TOKEN; {client.address()}/settings/tokens.",
            )
        api = client.api()
        _check_card(folder / CARD)
        if existing is None:
            api.create_repo(repo, private=private)
            _existing(repo, private)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(u.name, str(u.path)) for u in uploads]
        _upload(api, repo, revision, operations, say)
        check_sums(folder, {o.path_in_repo: o.upload_info.sha256.hex() for o in operations})
        commit = client.retrying(
            lambda: api.create_commit(
                repo, operations, commit_message=commit_message, revision=revision
            ),
            repo,
            progress=progress,
        )
        _check_arrived(api, repo, commit.oid, operations)
    except client.HUB_ERRORS as error:
        raise _explain(error, repo, revision) from None
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error.__cause__, client.HUB_ERRORS):
            raise _explain(error.__cause__, repo, revision) from None
        raise UserError(
            f"could not be published to ({client.brief(error)})",
            repo,
            "Run it again: what has been uploaded is not uploaded a second time.",
        ) from None
    return client.mask(commit.commit_url)


def _explain(error: Exception, repo: str, revision: str | None) -> UserError:
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 409:
        return UserError("exists already, but the token in use cannot see it", repo)
    return client.hub_error(error, repo, revision)


def _existing(repo: str, private: bool) -> ModelInfo | None:
    """Return what is known of the repository, or None if it is not there.

    Raises:
        UserError: If its visibility is another than asked for.
    """
    try:
        info = client.retrying(
            lambda: client.api().model_info(repo, timeout=client.timeout()), repo
        )
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    if bool(info.private) is not private:
        is_now, wanted = ("private", "public") if info.private else ("public", "private")
        raise UserError(
            f"exists and is {is_now}, but {wanted} is asked for",
            repo,
            f"Its visibility is left as it is: choose another repository, ask for {is_now}, or "
            f"change it at {client.address()}/{repo}/settings.",
        )
    return info


def _say_plan(
    say: client.Say,
    repo: str,
    private: bool,
    existing: ModelInfo | None,
    uploads: list[Upload],
    left_out: list[tuple[str, str]],
) -> None:
    kind = "private" if private else "PUBLIC"
    total = human_bytes(sum(upload.size for upload in uploads))
    where = f"the existing {kind}" if existing else f"a new {kind}"
    say(f"{len(uploads)} files, {total}, to {where} repository {client.address()}/{repo}:")
    for upload in uploads:
        say(f"  {upload.name}  {human_bytes(upload.size)}")
    for name, why in left_out:
        say(f"  not uploaded: {name} ({why})")
    names = {upload.name for upload in uploads}
    for sibling in (existing.siblings or []) if existing else []:
        name = sibling.rfilename
        if name not in names and not name.startswith("."):
            say(f"  stays there, though this model does not have it: {name}")


def _check_card(card: Path) -> None:
    """Have the Hub read the card's metadata before anything large moves."""
    if not card.is_file():
        return
    response = get_session().post(
        f"{client.endpoint()}/api/validate-yaml",
        json={"content": card.read_text(encoding="utf-8"), "repoType": "model"},
        headers=client.headers(),
        timeout=client.timeout(),
    )
    if response.status_code == 400:
        found = "; ".join(str(row.get("message")) for row in response.json().get("errors", []))
        raise UserError(f"has metadata that the Hub does not take: {found}", str(card))


def _uses_xet() -> bool:
    return importlib.util.find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET


def _upload(
    api: HfApi,
    repo: str,
    revision: str | None,
    operations: list[CommitOperationAdd],
    say: client.Say,
) -> None:
    """Bring the content of all large files to the Hub, where it waits for the commit."""
    disable_progress_bars()
    began, done = time.monotonic(), 0
    total = sum(operation.upload_info.size for operation in operations)
    pool = ThreadPoolExecutor(max_workers=1 if _uses_xet() else _AT_ONCE)
    try:
        waiting = {
            pool.submit(
                api.preupload_lfs_files,
                repo,
                [operation],
                revision=revision,
                free_memory=False,
                num_threads=1,
            ): operation
            for operation in operations
        }
        for count, finished in enumerate(as_completed(waiting), 1):
            finished.result()
            operation = waiting[finished]
            done += operation.upload_info.size
            seconds = time.monotonic() - began
            say(
                f"{operation.path_in_repo}: there ({count} of {len(operations)} files, "
                f"{human_bytes(done)} of {human_bytes(total)}, {human_time(seconds)}, "
                f"{human_bytes(done / max(seconds, 1e-3))}/s)"
            )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_arrived(
    api: HfApi, repo: str, commit: str, operations: list[CommitOperationAdd]
) -> None:
    """Make sure that the commit has every file with the content that it has here."""
    info = client.retrying(
        lambda: api.model_info(
            repo, revision=commit, files_metadata=True, timeout=client.timeout()
        ),
        repo,
    )
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for operation in operations:
        sibling = there.get(operation.path_in_repo)
        if sibling is None:
            right = False
        elif sibling.lfs:
            right = sibling.lfs.sha256 == operation.upload_info.sha256.hex()
        else:
            with operation.as_file() as file:
                right = sibling.blob_id == _git_oid(file.read())
        if not right:
            raise UserError(
                f"has not got {operation.path_in_repo} as it is here",
                f"{repo}@{commit[:12]}",
                "Run it again to upload what is missing.",
            )


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
