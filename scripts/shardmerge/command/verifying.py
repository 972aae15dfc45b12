"""The command `verify`: a finished model's folder against what it says of itself."""

from __future__ import annotations

from pathlib import Path

from shardmerge.base.errors import UserError
from shardmerge.base.text import human_bytes
from shardmerge.package.finished import SUMS, check_finished
from shardmerge.run.cli import say, show


def verify(given: str) -> None:
    """Check a model's folder and print what was found.

    Args:
        given: The folder that has the checksums, or the folder of results above it.

    Raises:
        UserError: If a file is not as it was written, or the folder has no checksums.
    """
    folder = Path(given)
    if not (folder / SUMS).is_file() and (folder / "model" / SUMS).is_file():
        folder = folder / "model"
    found = check_finished(folder, say)
    if found.wrong:
        rest = f" and {len(found.wrong) - 1} more" if len(found.wrong) > 1 else ""
        raise UserError(
            f"is not as it was written: {found.wrong[0]}{rest}",
            str(folder),
            "Copy or download the model again.",
        )
    for name in found.others:
        say(f"not of the model, and not checked: {name}")
    size = human_bytes(found.size)
    show(f"{folder}: {len(found.files)} files, {size}, each as {SUMS} and provenance.json say\n")
