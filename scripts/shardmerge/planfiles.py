"""Where a plan lies on disk, and what jobs read of it. Quick to import, as every job does."""

from __future__ import annotations

from pathlib import Path

from shardmerge.files import load_json
from shardmerge.spec import ShardSpec

#: Folder below the working directory.
CACHE = Path(".shardmerge")
#: What is known of local files, by the workflow's first process and by jobs that hash them.
IDENTITIES = CACHE / "identities.json"


def plan_path(key: str) -> Path:
    """Return where the plan of that key lies."""
    return CACHE / "plans" / f"{key}.json"


def description_path(name: str) -> Path:
    """Return where the description of a build of that digest lies."""
    return CACHE / "builds" / f"{name}.json"


def spec_path(name: str) -> Path:
    """Return where the specification of that digest lies."""
    return CACHE / "specs" / f"{name}.json"


def load_spec(name: str) -> ShardSpec:
    """Return the specification of that digest.

    Raises:
        UserError: If there is none, which means that the workflow did not plan it.
    """
    return ShardSpec.from_json(dict(load_json(spec_path(name))))
