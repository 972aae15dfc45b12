"""What models are called: in paths, on terminals and in plots, and where others read it.

A recipe's reference (``/data/models/lab/tuned@main``) is unique but long, and may
tell of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath

from shardmerge.base.digest import digest
from shardmerge.base.pathnames import MOST_NAME_BYTES, too_long

_MACHINE_PATH = re.compile(r"^(/|~|\\|[A-Za-z]:[\\/]|\.\.?(/|\\|$))")


def slug(reference: str) -> str:
    """Return a reference as a folder name of at most 100 bytes; different ones differ in it."""
    name = reference.strip("./").replace("/", "--")
    plain = re.sub(r"[^\w.+@-]+", "-", name)
    long = too_long(plain)
    if plain == name and "--" not in reference and not long:
        return plain
    if long:
        plain = plain.encode()[: MOST_NAME_BYTES - 20].decode(errors="ignore")
    return f"{plain}-{digest(reference)[:6]}"


def folder_names(references: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Return each reference as a short folder name: its last part, with a mark unless it is unique.

    Args:
        references: As recipes write them.
        taken: Names that none may have.
    """
    last = _last_parts(references)
    others = [*last.values(), *taken]
    return {
        r: slug(part if others.count(part) == 1 else f"{part}-{digest(r)[:6]}")
        for r, part in last.items()
    }


def short_names(references: Iterable[str]) -> dict[str, str]:
    """Return each reference's last part, or all of it where another has the same."""
    last = _last_parts(references)
    counts = list(last.values())
    return {r: part if counts.count(part) == 1 else r for r, part in last.items()}


def public_names(references: Iterable[str]) -> dict[str, str]:
    """Return each model reference as it may be published: folders of this machine by their name.

    Args:
        references: As recipes write them.
    """
    names: dict[str, str] = {}
    for reference in references:
        name = reference
        if _MACHINE_PATH.match(reference):
            parts = PurePosixPath(reference.replace("\\", "/")).parts
            name = next((p for p in reversed(parts) if p not in ("/", ".", "..", "~")), "folder")
        plain, number = name, 2
        while name in names.values():
            name, number = f"{plain} ({number})", number + 1
        names[reference] = name
    return names


def short_public_names(references: Iterable[str]) -> dict[str, str]:
    """Return each reference's public name, short where that is unique."""
    public = public_names(references)
    short = short_names(public.values())
    return {reference: short[name] for reference, name in public.items()}


def shortener(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that writes the references within a label by their names.

    Args:
        names: Of each reference, for example its ``short_names``.
    """
    if not names:
        return lambda label: label
    longest_first = sorted(names, key=lambda r: (-len(r), r))
    pattern = re.compile(rf"(?<![^\s(])(?:{'|'.join(map(re.escape, longest_first))})(?![^\s,)])")
    return lambda label: pattern.sub(lambda match: names[match[0]], label)


def _last_parts(references: Iterable[str]) -> dict[str, str]:
    return {r: r.split("@")[0].rstrip("/").rsplit("/", 1)[-1] or r for r in references}
