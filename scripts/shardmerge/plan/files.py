"""Where a plan lies on disk, and what jobs read of it. Quick to import, as every job does.

Jobs know a shard by the digest of what determines its bytes. What else a specification holds (what
sources are called, how a job runs) may differ between plans that share the shard. So it is stored
under the hash of all its content, and each plan says which one is its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shardmerge.algebra.spec import ShardSpec
from shardmerge.base import forms
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json, read_text
from shardmerge.base.forms import FormError
from shardmerge.base.sealed import AGAIN, unseal

SpecKind = TypeVar("SpecKind")

#: Folder below the working directory.
CACHE = Path(".shardmerge")
#: What is known of local files, by the workflow's first process and by jobs that hash them.
IDENTITIES = CACHE / "identities.json"
#: Tells jobs which plan they belong to. It is no parameter of theirs: it decides no bytes.
PLAN_VARIABLE = "SHARDMERGE_PLAN"


@dataclass(frozen=True)
class PlanFiles:
    """What belongs to a plan.

    Args:
        specs: SHA-256 of each specification's file, by the job's digest.
        builds: SHA-256 of each description's file, by the build's digest.
    """

    specs: Mapping[str, str]
    builds: Mapping[str, str]


def plan_path(key: str) -> Path:
    """Return where the plan of that key lies."""
    return CACHE / "plans" / f"{key}.json"


def plan_list_path(key: str) -> Path:
    """Return where the list of what belongs to the plan of that key lies."""
    return CACHE / "jobs" / f"{key}.json"


def description_path(name: str) -> Path:
    """Return where the description of a build of that digest lies."""
    return CACHE / "builds" / f"{name}.json"


def spec_path(sha256: str) -> Path:
    """Return where the specification whose file has that hash lies."""
    return CACHE / "specs" / f"{sha256}.json"


def use_plan(key: str) -> None:
    """Make a plan the one that this process and its jobs work on."""
    os.environ[PLAN_VARIABLE] = key


def load_list(key: str) -> PlanFiles:
    """Return what belongs to the plan of that key.

    Raises:
        UserError: If that is not there or damaged.
    """
    path = plan_list_path(key)
    try:
        found = unseal(read_text(path), key, str(path))
        return PlanFiles(dict(found["specs"]), dict(found["builds"]))
    except UserError as error:
        raise UserError(error.message, error.where, AGAIN) from None
    except (TypeError, KeyError, ValueError):
        raise UserError("is damaged", str(path), AGAIN) from None


def used_plan_path() -> Path:
    """Return where the plan lies that this process and its jobs work on.

    Raises:
        UserError: If there is none.
    """
    if key := os.environ.get(PLAN_VARIABLE, ""):
        return plan_path(key)
    raise UserError("there is no plan that this job belongs to", str(CACHE), AGAIN)


def load_spec(name: str) -> ShardSpec:
    """Return the specification of a job of this process's plan.

    Args:
        name: The job's digest.

    Raises:
        UserError: If there is none, which means that the workflow did not plan it, or if its file
            is damaged.
    """
    return parse_spec(load_spec_json(name), name)


def parse_spec(data: dict[str, Any], where: str) -> ShardSpec:
    """Return the specification that JSON-able data is.

    Raises:
        UserError: If it is none.
    """
    try:
        return ShardSpec.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        raise UserError("is no specification of a shard", where, AGAIN) from None


def load_spec_of(kind: type[SpecKind], name: str, what: str) -> SpecKind:
    """Return the specification of a job that writes no shard, of this process's plan.

    Args:
        kind: Of which it is.
        name: The job's digest.
        what: What it specifies, for the error.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    try:
        return forms.read(kind, load_spec_json(name))
    except FormError as error:
        raise UserError(f"is no specification of {what}: {error}", name, AGAIN) from None


def load_spec_json(name: str) -> dict[str, Any]:
    """Return the same as JSON-able data, for one who needs little of it."""
    key = os.environ.get(PLAN_VARIABLE, "")
    sha256 = load_list(key).specs.get(name) if key else None
    if sha256 is None:
        raise UserError(f"there is no plan with the job {name}", str(plan_list_path(key)), AGAIN)
    check_whole(spec_path(sha256), sha256)
    return load_json(spec_path(sha256))


def check_whole(path: Path, sha256: str) -> None:
    """Make sure that a file is as it was written.

    Raises:
        UserError: If it is gone or damaged.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), AGAIN) from None
    if found != sha256:
        raise UserError("is damaged", str(path), AGAIN)
