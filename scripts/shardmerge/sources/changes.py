"""What moved between two locks, for the user who renews one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shardmerge.base.identities import LockedFile
from shardmerge.base.text import human_bytes
from shardmerge.sources.lock import Lock, LockedSource, LockedTensor

_SHOWN = 5


def describe_changes(old: Lock, new: Lock) -> list[str]:
    """Return one line per change, none if both locks pin the same contents.

    Args:
        old: The sources as they were locked.
        new: As they are now.
    """
    lines = []
    for name, now in new.sources.items():
        was = old.sources.get(name)
        lines += (
            [f"{name}: {line}" for line in _source_changes(was, now)] if was else [f"{name}: new"]
        )
    lines += [f"{name}: no longer used" for name in old.sources if name not in new.sources]
    return lines + _file_changes(old.texts, new.texts)


def _source_changes(old: LockedSource, new: LockedSource) -> list[str]:
    lines = []
    if old.commit != new.commit:
        what = new.revision or ("the default branch" if new.commit and old.commit else "it")
        lines.append(f"{what} moved from {_short(old)} to {_short(new)}")
    lines += _config_changes(old.config, new.config)
    lines += _file_changes(old.files, new.files)
    lines += _tensor_changes(old.tensors, new.tensors)
    return lines


def _short(source: LockedSource) -> str:
    return source.commit[:12] if source.commit else source.told


def _config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    absent = object()
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, absent), new.get(key, absent)
        if before is absent:
            lines.append(f"config.json: {key} is new: {after!r}")
        elif after is absent:
            lines.append(f"config.json: {key} is gone (was {before!r})")
        elif before != after:
            lines.append(f"config.json: {key} changed from {before!r} to {after!r}")
    return lines


def _file_changes(old: Mapping[str, LockedFile], new: Mapping[str, LockedFile]) -> list[str]:
    lines = []
    for name in sorted({*old, *new}):
        if name not in old:
            lines.append(f"{name} is new ({human_bytes(new[name].size)})")
        elif name not in new:
            lines.append(f"{name} is gone")
        elif old[name].identity != new[name].identity:
            lines.append(f"{name} has another content ({human_bytes(new[name].size)})")
    return lines


def _tensor_changes(old: Mapping[str, LockedTensor], new: Mapping[str, LockedTensor]) -> list[str]:
    both = [name for name in sorted(new) if name in old]
    kinds = {
        "new": [name for name in sorted(new) if name not in old],
        "gone": [name for name in sorted(old) if name not in new],
        "of another dtype": [n for n in both if old[n].dtype != new[n].dtype],
        "of another shape": [n for n in both if old[n].shape != new[n].shape],
    }
    return [f"{_count(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]


def _count(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
