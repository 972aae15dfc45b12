"""The picture of the coefficients that a card shows: whether there is one, and an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.files import sha256_of
from shardmerge.package.finished import read_sums
from shardmerge.plan.description import BuildDescription
from shardmerge.plan.paths import PICTURE


def shows_picture(description: BuildDescription, settings: Mapping[str, Any]) -> bool:
    """Return whether a build's card shows a picture: where it would tell nothing, there is none.

    Args:
        description: Of the build.
        settings: The configuration's ``card``.
    """
    return description.varied and settings.get("picture", True)


def remove_picture(folder: Path) -> None:
    """Remove the picture of an earlier card, if it is the one that SHA256SUMS lists.

    Args:
        folder: The model's.
    """
    path = folder / PICTURE
    try:
        is_ours = path.is_file() and read_sums(folder).get(PICTURE) == sha256_of(path)
    except UserError:  # no checksums, so that it may be anybody's
        return
    if is_ours:
        path.unlink()
