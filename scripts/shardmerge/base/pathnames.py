"""Which names of files and folders the user may write, and which of them a cluster's jobs get.

Names that a source has are the subject of ``filenames``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from shardmerge.base.errors import UserError, shortened
from shardmerge.base.filenames import LONGEST_PART, byte_count
from shardmerge.base.printable import first_harmful

#: Bytes of a name that stands in the middle of others.
MOST_NAME_BYTES = 100
#: Snakemake takes this at the end of a name for a rule that feeds itself.
_PERIODIC = re.compile(r"(.+?)\1{19,}\Z", re.DOTALL)
#: Executors put such texts between double quotes into the command that submits a job.
_PASSED = re.compile(r"[\w./+@:=, -]*")
_WORD = re.compile(r"[\w.+@][\w.+@-]*")


def check_path(text: str, where: str) -> str:
    """Return the path of a file or folder, if it can be one in a workflow.

    Args:
        text: The path.
        where: What to say in errors.

    Raises:
        UserError: If it is empty, begins with a hyphen, or has braces, control characters or a
            part that is too long.
    """
    if not text:
        raise UserError("is empty", where, "Write the path of a file or folder.")
    if text.startswith("-"):
        raise UserError(f"{shortened(text)} looks like an option", where,
                        "Write another name, or `./` before the path of a file.")  # fmt: skip
    if "{" in text or "}" in text:
        message = f"{shortened(text)} has braces, which Snakemake takes for wildcards"
        raise UserError(message, where, "Rename the file or folder.")
    check_text(text, where)
    if part := next((p for p in text.split("/") if byte_count(p) > LONGEST_PART), None):
        message = f"{shortened(part)} has {byte_count(part)} bytes"
        message += f"; a name in a path may have {LONGEST_PART}"
        raise UserError(message, where, "Write a shorter name.")
    return text


def check_text(text: str, where: str) -> str:
    """Return a text that can be shown on a terminal and written to a file as it is.

    Raises:
        UserError: If it has control characters, lone surrogates or marks that reorder a line.
    """
    if letter := first_harmful(text):
        raise UserError(f"{shortened(text)} has the character U+{ord(letter):04X}", where,
                        "Leave out characters that are not shown.")  # fmt: skip
    return text


def check_word(text: str, where: str) -> str:
    """Return a name that can stand in a path, on a command line and in a wildcard.

    Raises:
        UserError: If it is too long or has more than letters, digits and ``. _ + - @``.
    """
    if not _WORD.fullmatch(text) or not text.strip("."):
        message = f"{shortened(text)} is no name of a file"
        raise UserError(message, where, "Use letters, digits and `. _ + - @`.")
    if reason := too_long(text):
        raise UserError(f"{shortened(text)} {reason}", where, "Write a shorter name.")
    return text


def too_long(name: str) -> str | None:
    """Return what is wrong with the length of a name, or None."""
    if byte_count(name) > MOST_NAME_BYTES:
        return f"has {byte_count(name)} bytes; a name may have {MOST_NAME_BYTES}"
    if found := _PERIODIC.search(name):
        return f"repeats {found[1]!r} 20 times or more, which Snakemake takes for an endless loop"
    return None


def check_passed(texts: Mapping[str, str]) -> None:
    """Check what Snakemake writes into the commands that submit jobs to a cluster.

    Executors do not quote it for the shell that runs these commands.

    Args:
        texts: By what they are.

    Raises:
        UserError: If a shell could read one otherwise than as it is.
    """
    for what, text in texts.items():
        if odd := _PASSED.sub("", text):
            raise UserError(
                f"{shortened(text)} has {odd[0]!r}, which is not safe to pass to jobs on a cluster",
                what,
                "Rename it, or run on one machine (`--cores`).",
            )


def check_fetched_on_nodes(files: Mapping[str, str]) -> None:
    """Check the names of files that jobs of a cluster fetch.

    Args:
        files: Name of each file in its repository, by its path here.

    Raises:
        UserError: If a name cannot be passed to jobs on a cluster.
    """
    for path, name in files.items():
        if not all(_WORD.fullmatch(part) for part in name.split("/")):
            raise UserError(
                f"the name {shortened(name)} cannot be passed to jobs on a cluster",
                path,
                "Write `resources: {fetch_on: head}`.",
            )
