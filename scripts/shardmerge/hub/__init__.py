"""The Hugging Face Hub below the rules: lock, fetch, publish."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, hence before it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "60")

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
