"""The Hugging Face Hub below the rules: lock and fetch."""

from __future__ import annotations

from shardmerge.sources.hub import ambient  # noqa: F401  (before huggingface_hub is imported)
from shardmerge.sources.hub.fetching import FetchRecord, fetch
from shardmerge.sources.hub.locking import Commit, base_model, commit_of, latest_commit

__all__ = [
    "Commit",
    "FetchRecord",
    "base_model",
    "commit_of",
    "fetch",
    "latest_commit",
]
