"""What of an upload a repository has already, by the Hub's own hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from shardmerge.sources.hub import client  # before huggingface_hub, which it sets up

# isort: split
from huggingface_hub import CommitOperationAdd
from huggingface_hub.hf_api import ModelInfo

from shardmerge.base.errors import UserError


def info_of(repo: str, revision: str | None = None) -> ModelInfo:
    """Return what the Hub says of a repository and of its files.

    Args:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
    """
    return client.retrying(
        lambda: client.api().model_info(
            repo, revision=revision, files_metadata=True, timeout=client.timeout()
        ),
        repo,
    )


def unlike_here(info: ModelInfo, operations: Iterable[CommitOperationAdd]) -> list[str]:
    """Return the names of files that a commit has not got as they are here.

    Args:
        info: From ``info_of``.
        operations: Of the files.
    """
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    found = []
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
            found.append(operation.path_in_repo)
    return found


def check_arrived(repo: str, commit: str, operations: Iterable[CommitOperationAdd]) -> None:
    """Make sure that a commit has every file with the content that it has here.

    Raises:
        UserError: If not.
    """
    if names := unlike_here(info_of(repo, commit), operations):
        raise UserError(
            f"has not got {names[0]} as it is here",
            f"{repo}@{commit[:12]}",
            "Run it again to upload what is missing.",
        )


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
