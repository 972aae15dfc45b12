"""The Hugging Face Hub below the rules: lock and fetch."""

from __future__ import annotations

from shardmerge.sources.hub import ambient  # noqa: F401  (before huggingface_hub is imported)
from shardmerge.sources.hub.fetching import FetchRecord, fetch
from shardmerge.sources.hub.locking import latest_commit, lock_source, read_file, read_tensors

__all__ = [
    "FetchRecord",
    "fetch",
    "latest_commit",
    "lock_source",
    "read_file",
    "read_tensors",
]
