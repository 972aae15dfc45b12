"""The command `verify`: a finished model's folder against what it says of itself."""

from __future__ import annotations

from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes
from shardmerge.package.finished import SUMS, check_finished, finished_folders
from shardmerge.run.cli import say, show


def verify(given: str) -> None:
    """Check a model, an adapter, an export, or all of these of a result, and print what was found.

    Args:
        given: The folder that has the checksums, or the folder of results above it.

    Raises:
        UserError: If a file is not as it was written, or the folder has no checksums.
    """
    for folder in finished_folders(Path(given)):
        _verify(folder)


def _verify(folder: Path) -> None:
    found = check_finished(folder, say)
    if found.wrong:
        rest = f" and {len(found.wrong) - 1} more" if len(found.wrong) > 1 else ""
        raise UserError(
            f"is not as it was written: {found.wrong[0]}{rest}",
            str(folder),
            "Copy or download it again.",
        )
    for name in found.others:
        say(f"not part of it, and not checked: {name}")
    size = human_bytes(found.size)
    show(f"{folder}: {len(found.files)} files, {size}, each as {SUMS} and provenance.json say\n")
