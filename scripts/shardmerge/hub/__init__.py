"""The Hugging Face Hub below the rules: lock, fetch, publish."""

from __future__ import annotations

from shardmerge.hub import ambient  # noqa: F401  (before huggingface_hub is imported)
from shardmerge.hub.fetching import FetchRecord, fetch
from shardmerge.hub.locking import latest_commit, lock_source, read_file
from shardmerge.hub.publishing import check_verified, publish
from shardmerge.hub.uploads import list_uploads

__all__ = [
    "FetchRecord",
    "check_verified",
    "fetch",
    "latest_commit",
    "list_uploads",
    "lock_source",
    "publish",
    "read_file",
]
