"""What a source's stored tensors are as tensors of its model: weights may be quantised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shardmerge import formats
from shardmerge.base.errors import UserError
from shardmerge.base.files import parse_object
from shardmerge.formats.announcement import KEYS, SIDE_FILES
from shardmerge.formats.interface import LogicalTensor
from shardmerge.sources.lock import LockedSource, LockedTensor
from shardmerge.sources.lockschema import MOST_CONTENT_BYTES

#: Returns the bytes of tensors, in their order.
ReadTensors = Callable[[Sequence[LockedTensor]], Sequence[bytes]]


@dataclass(frozen=True)
class Weights:
    """A source's tensors as its model has them.

    Args:
        plain: Those that a file holds as they are, by name.
        decoded: Those that several stored tensors make, by name.
        stale: Whether its files say that weights are quantised, but none is.
    """

    plain: Mapping[str, LockedTensor]
    decoded: Mapping[str, LogicalTensor] = field(default_factory=dict)
    stale: bool = False


def weights_of(locked: LockedSource, where: str) -> Weights:
    """Return a source's tensors as its model has them.

    Args:
        locked: The source, with what ``lacking`` names.
        where: The model, for errors.

    Raises:
        UserError: If its weights are in a format that cannot be read, or their parts do not fit.
    """
    if locked.role == "checkpoint":
        decoded = formats.values_of(locked.tensors)
        return Weights({n: t for n, t in locked.tensors.items() if n not in decoded}, decoded)
    reading = _reading(locked, where)
    if not isinstance(reading, formats.Reading):
        return Weights(locked.tensors, stale=reading == "stale")
    try:
        decoded, claimed = _resolved(reading, locked)
    except UserError as error:
        raise error.at(where) from None
    if not decoded:
        return Weights(locked.tensors, stale=bool(reading.said.method))
    return Weights({n: t for n, t in locked.tensors.items() if n not in claimed}, decoded)


#: What was found of the last model, and of what: the models of a merge are mostly stored alike.
_last: list[Any] = [None, None]


def _resolved(
    reading: formats.Reading, locked: LockedSource
) -> tuple[Mapping[str, LogicalTensor], Collection[str]]:
    """Return as ``Reading.resolved``, which depends on names, types and shapes of tensors alone."""
    layout = list(locked.tensors), [(one.dtype, one.shape) for one in locked.tensors.values()]
    said = reading.said.method, reading.said.settings
    known = (*said, reading.formats, locked.contents, layout)
    if _last[0] != known:
        _last[:] = known, reading.resolved(locked.tensors, locked.contents)
    return _last[1]


def lacking(locked: LockedSource, where: str) -> list[str]:
    """Return what must be read to know how a source is quantised, and its lock does not hold.

    Raises:
        UserError: If its weights are in a format that cannot be read.
    """
    return _lacking_files(locked) or _lacking_contents(locked, where)


def with_parameters(
    locked: LockedSource, read: Callable[[str], bytes], read_tensors: ReadTensors, where: str
) -> LockedSource:
    """Return a source's lock with what ``lacking`` named.

    Args:
        locked: The source.
        read: Returns the bytes of one of its files.
        read_tensors: Returns the bytes of tensors.
        where: The model, for errors.

    Raises:
        UserError: If a file is not what it must be, or the weights cannot be read.
    """
    files = {n: parse_object(read(n), f"{where}, {n}") for n in _lacking_files(locked)}
    locked = replace(locked, side_files={**locked.side_files, **files})
    names = _lacking_contents(locked, where)
    wanted = [locked.tensors[name] for name in names]
    for name, tensor in zip(names, wanted, strict=True):
        if tensor.end - tensor.begin > MOST_CONTENT_BYTES:
            raise UserError("is too long for what it must hold", f"{where}, tensor {name!r}")
    contents = dict(zip(names, read_tensors(wanted) if wanted else (), strict=True))
    return replace(locked, contents={**locked.contents, **contents})


def announcing_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a config.json that say how weights are quantised (``a.b``: b under a)."""
    yield from (key for key in KEYS if key in config)
    for name, section in config.items():
        if isinstance(section, Mapping) and name not in KEYS and "." not in name:
            yield from (f"{name}.{key}" for key in KEYS if key in section)


def _reading(locked: LockedSource, where: str) -> formats.Reading | Literal["stale"] | None:
    return formats.detect(locked.config, locked.side_files, locked.tensors, where)


def _lacking_files(locked: LockedSource) -> list[str]:
    return [name for name in SIDE_FILES if name in locked.files and name not in locked.side_files]


def _lacking_contents(locked: LockedSource, where: str) -> list[str]:
    found = _reading(locked, where)
    if not isinstance(found, formats.Reading):
        return []
    return [name for name in found.needed(locked.tensors) if name not in locked.contents]
