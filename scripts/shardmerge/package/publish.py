"""Publish: a verified model folder, and nothing else, as one commit of a repository."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from shardmerge.sources.hub import client  # before huggingface_hub, which it sets up

# isort: split
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import disable_progress_bars, get_session

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes, human_time
from shardmerge.package.arrived import check_arrived, info_of, unlike_here
from shardmerge.package.index import CARD
from shardmerge.package.signature import check_signed
from shardmerge.package.uploads import Upload, check_sums, known_sums, list_uploads
from shardmerge.plan.paths import SIGNATURE

Listing = Callable[[Path], tuple[list[Upload], list[tuple[str, str]]]]
#: Files that go up at the same time over LFS; xet is parallel within a file.
_AT_ONCE = 4


@dataclass(frozen=True)
class Published:
    """What became of an upload.

    Args:
        url: The commit's page; on a dry run the repository's.
        commit: Its 40 hexadecimal digits, None on a dry run.
        files: SHA-256 and size of each file, by name; on a dry run what would be uploaded, without
            hashes.
    """

    url: str
    commit: str | None
    files: Mapping[str, Mapping[str, str | int]]


def publish(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    commit_message: str = "Upload merged model",
    dry_run: bool = False,
    progress: client.Say | None = None,
    listing: Listing = list_uploads,
    signature: Path | None = None,
) -> Published:
    """Upload a model folder; what an interrupted call has uploaded is not uploaded again.

    All files become visible in one commit, after the last of them is there.

    Args:
        folder: The model, or an export of it.
        repo: ``owner/name``, created if it does not exist.
        private: Whether the repository is to be private.
        revision: Branch, created if it does not exist; None for the default one.
        tag: Name that the commit gets, once all is there.
        commit_message: First line of the commit.
        dry_run: Say what would be done, change nothing.
        progress: Receives lines for the log.
        listing: Says what of the folder goes; ``list_export`` for an export.
        signature: File that goes with it as ``model.sig``; it must be of exactly these files.

    Returns:
        The commit and its files.

    Raises:
        UserError: If the repository is of the other visibility, the folder is not a whole model,
            or the upload failed.
    """
    say = progress or (lambda line: None)
    uploads, left_out = listing(folder)
    uploads, left_out = _with_signature(uploads, left_out, signature)
    try:
        existing = _existing(repo, private)
        _say_plan(say, repo, private, existing, uploads, left_out, known_sums(folder))
        if dry_run:
            sizes = {upload.name: {"size": upload.size} for upload in uploads}
            return Published(f"{client.address()}/{repo}", None, sizes)
        if get_token() is None:
            raise UserError(
                "can be published to with a token that may write only, and none is set",
                repo,
                f"Run `hf auth login` or set HF_TOKEN; {client.address()}/settings/tokens.",
            )
        api = client.api()
        _check_card(folder / CARD)
        operations = [CommitOperationAdd(u.name, str(u.path)) for u in uploads]
        if existing is None:
            api.create_repo(repo, private=private)
            _existing(repo, private)
        elif tag:
            _check_tag(api, repo, tag, operations)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        _upload(api, repo, revision, operations, say)
        sums = {o.path_in_repo: o.upload_info.sha256.hex() for o in operations}
        check_sums(folder, sums)
        if signature:
            check_signed(signature, sums)
        commit = client.retrying(
            lambda: api.create_commit(
                repo, operations, commit_message=commit_message, revision=revision
            ),
            repo,
            progress=progress,
        )
        check_arrived(repo, commit.oid, operations)
        if tag:
            _set_tag(api, repo, tag, commit.oid, operations)
            say(f"{tag}: names commit {commit.oid}")
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
    files = {u.name: {"sha256": sums[u.name], "size": u.size} for u in uploads}
    return Published(client.mask(commit.commit_url), commit.oid, files)


def _with_signature(
    uploads: list[Upload], left_out: list[tuple[str, str]], signature: Path | None
) -> tuple[list[Upload], list[tuple[str, str]]]:
    """Return the same lists with the signature among what goes, and no other one."""
    rest = [(name, why) for name, why in left_out if name != SIGNATURE]
    if signature is None:
        known = len(rest) < len(left_out)
        return uploads, [*rest, (SIGNATURE, "signing is not asked for")] if known else rest
    if signature.is_symlink() or not signature.is_file():
        raise UserError("is no file of a signature", str(signature))
    own = Upload(SIGNATURE, signature, signature.stat().st_size)
    return sorted([*uploads, own], key=lambda upload: upload.name), rest


def _check_tag(api: HfApi, repo: str, tag: str, operations: list[CommitOperationAdd]) -> None:
    """Refuse, before anything moves, a tag that names a commit with other files.

    A tag that is there already is fine if an earlier run set it and was killed after that.
    """
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
    if tag in tags and unlike_here(info_of(repo, tag), operations):
        raise UserError(
            f"has a tag {tag!r} already, of other files; it is left where it is",
            repo,
            "Write another name as `publish.tag`.",
        )


def _set_tag(
    api: HfApi, repo: str, tag: str, commit: str, operations: list[CommitOperationAdd]
) -> None:
    """Set a tag; one that is there already must be of files that are the same."""
    api.create_tag(repo, tag=tag, revision=commit, exist_ok=True)
    found = info_of(repo, tag)
    if found.sha != commit and unlike_here(found, operations):
        raise UserError(f"has a tag {tag!r} of another commit, {found.sha}", repo)


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
        info = info_of(repo)
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
    sums: Mapping[str, str],
) -> None:
    kind = "private" if private else "PUBLIC"
    total = human_bytes(sum(upload.size for upload in uploads))
    where = f"the existing {kind}" if existing else f"a new {kind}"
    say(f"{len(uploads)} files, {total}, to {where} repository {client.address()}/{repo}:")
    there = {s.rfilename: s.lfs.sha256 for s in (existing and existing.siblings) or [] if s.lfs}
    for upload in uploads:
        known = there.get(upload.name) == sums.get(upload.name, "")
        say(f"  {upload.name}  {human_bytes(upload.size)}{', there already' if known else ''}")
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
