"""How a source of the lock is quantised, if it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from shardmerge.base.errors import UserError
from shardmerge.sources import formats
from shardmerge.sources.formats.announcement import KEYS
from shardmerge.sources.lock import LockedSource

_INSTEAD = (
    "Merge the models that it was made from, or a copy of it that a library has saved in 16 bits."
)


def reading_of(locked: LockedSource, where: str) -> formats.Reading | Literal["stale"] | None:
    """Return how a source's weights are quantised, as ``formats.detect``.

    Args:
        locked: The source.
        where: The model, for errors.

    Raises:
        UserError: If its weights are in a format that cannot be read.
    """
    found = formats.detect(locked.config, {}, locked.tensors, where)
    if isinstance(found, formats.Reading) and not _has_codes(found, locked):
        return "stale" if found.said.method else None
    return found


def check_plain(locked: LockedSource, where: str) -> None:
    """Check that a source's weights are not quantised.

    Raises:
        UserError: If they are; names the format.
    """
    found = reading_of(locked, where)
    if isinstance(found, formats.Reading):
        said = found.said.method or ", ".join(form.name for form in found.formats)
        raise UserError(
            f"has weights that are quantised ({formats.short(said)}), which cannot be merged yet",
            where,
            _INSTEAD,
        )


def announcing_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a config.json that say how weights are quantised (``a.b``: b under a)."""
    yield from (key for key in KEYS if key in config)
    for name, section in config.items():
        if isinstance(section, Mapping) and name not in KEYS and "." not in name:
            yield from (f"{name}.{key}" for key in KEYS if key in section)


def _has_codes(found: formats.Reading, locked: LockedSource) -> bool:
    return bool(found.needed(locked.tensors) or found.logical(locked.tensors))
