"""Dataclasses that are written as JSON and read again, each value checked as it is read.

A field says how its value is read: ``size: int = entry(count)``. A reader returns the value as the
dataclass has it, or raises ``FormError``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from shardmerge.base.digest import canonical_json, is_digest, is_hex
from shardmerge.base.errors import UserError
from shardmerge.base.files import load_json

Reader = Callable[[Any], Any]
_T = TypeVar("_T")

_LARGEST = 1 << 63
_PLAIN = {str, int, float, bool, type(None)}


class FormError(ValueError):
    """A value has not the form that it must have; says which, as the end of a sentence."""


def entry(read: Reader, default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """Return a dataclass's field.

    Args:
        read: How its value is read.
        default: Its value where it is not written; it is not written where it has that value.
        default_factory: The same, made anew each time.
    """
    return field(
        default=default, default_factory=default_factory, metadata={"read": read}, kw_only=True
    )


def read(cls: type[_T], data: Any) -> _T:
    """Return a dataclass of ``entry`` fields; what else the data hold is not looked at.

    Args:
        cls: The dataclass.
        data: What ``written`` returned, once through JSON.

    Raises:
        FormError: If a value is missing or wrong; names its key.
    """
    if not isinstance(data, Mapping):
        raise FormError("it is no object")
    found = {}
    for one in fields(cls):
        if one.name in data:
            try:
                found[one.name] = one.metadata["read"](data[one.name])
            except FormError as error:
                within = f" ({error})" if str(error) else ""
                raise FormError(f"it has no right {one.name!r}{within}") from None
        elif one.default is MISSING and one.default_factory is MISSING:
            raise FormError(f"it lacks {one.name!r}")
    return cls(**found)


def read_file(cls: type[_T], path: str | os.PathLike[str]) -> _T:
    """Return what a job wrote to a file with ``written``.

    Raises:
        UserError: If it cannot be read or is damaged.
    """
    try:
        return read(cls, load_json(path))
    except FormError as error:
        raise UserError(
            f"is not what a job of the workflow writes: {error}",
            str(path),
            "Delete it and run the workflow again, which makes it anew.",
        ) from None


def written(value: Any) -> Any:
    """Return a value as JSON-able data: dataclasses by their fields, less those with defaults."""
    if type(value) in _PLAIN:  # most are
        return value
    if type(value) is not dict and hasattr(value, "__dataclass_fields__"):
        return {
            one.name: written(getattr(value, one.name))
            for one in fields(value)
            if getattr(value, one.name) != _default(one)
        }
    if isinstance(value, Mapping):
        # many keys of a large table share one object: it is written once
        kinds = {id(item): item for item in value.values()}
        known = {number: written(item) for number, item in kinds.items()}
        return {key: known[id(item)] for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _PLAIN else written(item) for item in value]
    return value


class Written:
    """A dataclass of entries that is kept as JSON; ``read`` inverts it."""

    @property
    def text(self) -> str:
        """It as canonical JSON."""
        return canonical_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return written(self)


def _default(one: Any) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def holds(is_right: Callable[[Any], object]) -> Reader:
    """Return a reader of values that are right as they are."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise FormError
        return value

    return check


text = holds(lambda value: isinstance(value, str))
truth = holds(lambda value: type(value) is bool)
count = holds(lambda value: type(value) is int and 0 <= value < _LARGEST)
integer = holds(lambda value: type(value) is int)
#: A number that may be infinite or none, as a perplexity or a sum of squares.
real = holds(lambda value: type(value) in (int, float))
number = holds(lambda value: type(value) in (int, float) and math.isfinite(value))
sha256 = holds(is_digest)
xxh3 = holds(lambda value: is_hex(value, 32))
#: What earlier versions noted as SHA-256.
quick_or_sha256 = holds(lambda value: is_hex(value, 32) or is_digest(value))
table = holds(lambda value: isinstance(value, dict))


def one_of(known: Callable[[], Container[str]]) -> Reader:
    """Return a reader of texts that are among some that are known."""
    return holds(lambda value: isinstance(value, str) and value in known())


def maybe(read_one: Reader) -> Reader:
    """Return a reader of values that may be null."""
    return lambda value: None if value is None else read_one(value)


def listed(read_one: Reader) -> Reader:
    """Return a reader of lists, as tuples."""
    return lambda value: tuple(map(read_one, _list(value)))


def row(*readers: Reader) -> Reader:
    """Return a reader of lists with a value for each reader, as tuples."""

    def read_row(value: Any) -> tuple[Any, ...]:
        if len(_list(value)) != len(readers):
            raise FormError
        return tuple(one(item) for one, item in zip(readers, value, strict=True))

    return read_row


def mapped(read_one: Reader, read_key: Reader = text) -> Reader:
    """Return a reader of objects whose values, and whose keys, have one form."""
    return lambda value: {read_key(k): read_one(item) for k, item in table(value).items()}


def made_of(cls: type[_T]) -> Callable[[Any], _T]:
    """Return a reader of a dataclass."""
    return lambda value: read(cls, value)


def _list(value: Any) -> Iterable[Any]:
    if not isinstance(value, (list, tuple)):
        raise FormError
    return value
